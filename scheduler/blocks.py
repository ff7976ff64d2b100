"""What sequences hold and give back: blocks of the key/value cache, and slots of the runner.

Both come back behind a fence: the number of the last step planned when they were released. A plan in flight may still
read or write them, so they are handed out again only once that step has settled (committed or failed).

A block is in exactly one place:

    held (refs > 0)  ->  fenced (refs 0, a plan in flight)  ->  evictable (it has a digest)  or  fresh (it has none)
         ^                       |                                    |                            |
         +------ acquire --------+------------- acquire --------------+         allocate ----------+
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

NUM_RESERVED = 2  # block 0: zeros, for padding reads; block 1: takes padding writes


class Fences:
    """Ids that wait for a step to settle. Steps settle in order."""

    def __init__(self) -> None:
        self.settled = 0
        self._by_step: dict[int, list[int]] = {}
        self._fence: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._fence)

    def __contains__(self, item: int) -> bool:
        return item in self._fence

    def hold(self, item: int, fence: int) -> bool:
        """False if step `fence` has settled already: the item need not wait."""
        if fence <= self.settled:
            return False
        self._fence[item] = fence
        self._by_step.setdefault(fence, []).append(item)
        return True

    def __iter__(self) -> Iterator[int]:
        return iter(self._fence)

    def drop(self, item: int) -> None:
        self._fence.pop(item, None)

    def settle(self, step: int) -> list[int]:
        """The items that wait no longer."""
        self.settled = step
        free: list[int] = []
        for item in self._by_step.pop(step, ()):
            # An item dropped and held again is listed twice, perhaps under a later step.
            if self._fence.get(item) == step:
                del self._fence[item]
                free.append(item)
        return free


class SlotPool:
    """The rows of the runner."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._fences = Fences()

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        return self._free.pop()

    def release(self, slot: int, fence: int) -> None:
        if not self._fences.hold(slot, fence):
            self._free.append(slot)

    def settle(self, step: int) -> None:
        self._free += self._fences.settle(step)

    def check(self, held: Iterable[int]) -> None:
        """Every slot is held, fenced or free, and only one of them."""
        held = list(held)
        known = {*held, *self._free}
        if len(held) + len(self._free) + len(self._fences) != self.total or len(known) != len(held) + len(self._free):
            raise RuntimeError(f"slots held {held}, free {self._free}, fenced {len(self._fences)} of {self.total}")


class BlockPool:
    """Reference counts of all blocks, and the map from a prefix digest to the block that holds it.

    Evicts the least recently released cached block first, and only when no fresh block is left.
    """

    def __init__(self, total: int, block_size: int) -> None:
        if total <= NUM_RESERVED or block_size < 1:
            raise ValueError(f"a pool of {total} blocks of {block_size} tokens holds nothing")
        self.total = total
        self.block_size = block_size
        self.usable = total - NUM_RESERVED
        self._refs = [0] * total
        self._digests: list[bytes | None] = [None] * total
        self._blocks: dict[bytes, int] = {}
        self._fresh = list(range(total - 1, NUM_RESERVED - 1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._fences = Fences()

    @property
    def free(self) -> int:
        """Blocks that `allocate` can hand out now."""
        return len(self._fresh) + len(self._evictable)

    @property
    def fenced(self) -> int:
        """Blocks that will be free once the plans in flight have settled."""
        return len(self._fences)

    @property
    def cached(self) -> int:
        """Free blocks that a prefix still finds."""
        return len(self._evictable)

    def find(self, digest: bytes) -> int | None:
        return self._blocks.get(digest)

    def num_free_of(self, ids: Iterable[int]) -> int:
        """How many of `ids` count as free now, and would not after `acquire`."""
        return sum(block in self._evictable for block in ids)

    def acquire(self, ids: Iterable[int]) -> None:
        """One more reference to each: published blocks, held by others or by nobody."""
        for block in ids:
            if self._refs[block] == 0:
                self._fences.drop(block)
                self._evictable.pop(block, None)
            self._refs[block] += 1

    def allocate(self, num: int) -> list[int] | None:
        """`num` private blocks with one reference each, or None and no change."""
        if num > self.free:
            return None
        taken = [self._fresh.pop() if self._fresh else self._evict() for _ in range(num)]
        for block in taken:
            self._refs[block] = 1
        return taken

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        digest = self._digests[block]
        assert digest is not None, f"block {block} is evictable without a digest"
        del self._blocks[digest]
        self._digests[block] = None
        return block

    def publish(self, block: int, digest: bytes) -> None:
        """`block` is full, computed, and never written again. A twin of a published block stays private."""
        if self._refs[block] < 1 or self._digests[block] is not None:
            raise RuntimeError(f"block {block} cannot be published: {self._refs[block]} references")
        if digest not in self._blocks:
            self._blocks[digest] = block
            self._digests[block] = digest

    def release(self, ids: Iterable[int], fence: int) -> None:
        """One reference less to each; without any, reusable once step `fence` has settled.

        Blocks are evicted in the order given: pass the end of a chain first, its beginning serves more prompts.
        """
        refs = self._refs
        for block in ids:
            if refs[block] < 1:
                raise RuntimeError(f"block {block} released without a reference")
            refs[block] -= 1
            if refs[block] == 0 and not self._fences.hold(block, fence):
                self._free_block(block)

    def settle(self, step: int) -> None:
        for block in self._fences.settle(step):
            self._free_block(block)

    def _free_block(self, block: int) -> None:
        if self._digests[block] is None:
            self._fresh.append(block)
        else:
            self._evictable[block] = None

    def occupancy(self, blocks_per_cell: int) -> list[tuple[int, int]]:
        """(held, cached) of so many blocks after another, the last cell of what is left. Fenced ones count as held."""
        starts = range(NUM_RESERVED, self.total, blocks_per_cell)
        cells = [self._cell(slice(start, start + blocks_per_cell)) for start in starts]
        for block in self._fences:
            place = (block - NUM_RESERVED) // blocks_per_cell
            held, cached = cells[place]
            cells[place] = held + 1, cached - (self._digests[block] is not None)
        return cells

    def _cell(self, blocks: slice) -> tuple[int, int]:
        # Without a loop of our own: a large pool is looked at while streams wait. Three times as fast.
        refs = self._refs[blocks]
        num_unheld = refs.count(0)
        if not num_unheld:
            return len(refs), 0
        digests = list(compress(self._digests[blocks], map(operator.not_, refs)))
        return len(refs) - num_unheld, num_unheld - digests.count(None)

    def check(self, tables: Sequence[Sequence[int]]) -> None:
        """`tables`: the blocks of every sequence that holds any. Raises RuntimeError on a broken invariant."""
        # Only sums and counts: a large pool must not notice this when idle.
        num_references = sum(map(len, tables))
        held: set[int] = set().union(*tables)
        if num_references != sum(self._refs) or min(map(self._refs.__getitem__, held), default=1) < 1:
            raise RuntimeError(f"sequences hold {num_references} references, the pool knows {sum(self._refs)}")
        unheld = self.fenced + self.free
        if len(held) + unheld != self.usable or self._refs.count(0) != unheld + NUM_RESERVED:
            numbers = f"{len(held)} held, {self.fenced} fenced, {self.free} free of {self.usable}"
            raise RuntimeError(f"blocks are lost, or in two places: {numbers}")
        if self.total - self._digests.count(None) != len(self._blocks):
            raise RuntimeError(f"{len(self._blocks)} digests are published, blocks know of another number")
