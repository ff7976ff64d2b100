"""From one pre-tokenised piece to token ids: byte-pair merges by tiktoken, exactly as the list of merges says.

tiktoken has no list. It joins two neighbours if their bytes together are any vocabulary entry, lowest rank first, and
takes a piece that is an entry as it is. That gives what the list gives if three things hold:

1. every merge joins parts that earlier merges made, and all merges that make one token stand together in the list,
   so that the merges of a token form one phase, and phases run in order;
2. ranks follow that order (token ids need not: ranks are ours, ids are looked up at the end);
3. entries that the list never arrives at have no rank.

Why that is enough: take the bytes of a token inside any text whose borders no merge has crossed. What happened inside
is what would have happened to these bytes alone, so when the token's phase comes, they are in the one state that they
are in alone. By 3 that state is the pair that the list joins, whichever pair of strings tiktoken asks about.

Where 1 does not hold, `merges_exact` encodes. It knows nothing of text, pre-tokenisation or special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from tiktoken import Encoding

Merge = tuple[bytes, bytes]
Merger = Callable[[bytes], list[int]]

_BYTES = [bytes([byte]) for byte in range(256)]
_LONG_PIECE = 256  # bytes; above, it is worth the overhead of a call that lets other threads run


@dataclass(frozen=True, slots=True)
class BpeModel:
    ids: Mapping[bytes, int]  # every entry that encoding may give
    merges: Sequence[Merge]  # in order of priority
    ignore_merges: bool = False  # a piece that is an entry is taken whole, whatever the merges say
    unknown_id: int | None = None  # stands for a byte without an entry; None: such bytes vanish
    fuse_unknown: bool = False  # one unknown_id for a run of them


class PieceEncoder:
    """Encodes pieces. Takes time linear in a piece, but for a logarithm."""

    def __init__(self, model: BpeModel) -> None:
        ranks = tiktoken_ranks(model.merges)
        self.uses_tiktoken = ranks is not None
        self._merge = _exact_merger(model) if ranks is None else _tiktoken_merger(model, ranks)
        self._unknown_id = model.unknown_id
        self._fuse_unknown = model.fuse_unknown
        self._missing = b"".join(byte for byte in _BYTES if byte not in model.ids)
        self._whole = _entries_only_whole(model, ranks) if model.ignore_merges else {}

    def encode(self, piece: str) -> list[int]:
        data = piece.encode()
        if self._whole and (token := self._whole.get(data)) is not None:
            return [token]
        if self._missing:
            if self._unknown_id is not None:
                return self._encode_with_unknown(data, self._unknown_id)
            data = data.translate(None, self._missing)
        return self._merge(data) if data else []

    def _encode_with_unknown(self, data: bytes, unknown: int) -> list[int]:
        ids: list[int] = []
        fused = False
        start = 0
        for at, byte in enumerate(data):
            if byte in self._missing:
                ids += self._merge(data[start:at]) if at > start else []
                fused = self._fuse_unknown and at == start and fused
                ids += [] if fused else [unknown]
                fused, start = True, at + 1
        return ids + (self._merge(data[start:]) if start < len(data) else [])


def tiktoken_ranks(merges: Sequence[Merge]) -> dict[bytes, int] | None:
    """Ranks with which tiktoken gives what the merges give; None if condition 1 above does not hold."""
    ranks = {byte: rank for rank, byte in enumerate(_BYTES)}
    joins: dict[tuple[int, int], int] = {}
    latest = b""
    for index, (left, right) in enumerate(merges):
        token = left + right
        if left not in ranks or right not in ranks or (token in ranks and token != latest):
            return None
        joins[ranks[left], ranks[right]] = ranks.setdefault(token, 256 + index)
        latest = token
    halves = _reachable(joins)
    return {token: rank for token, rank in ranks.items() if rank < 256 or rank in halves}


def _reachable(joins: Mapping[tuple[int, int], int]) -> dict[int, tuple[int, int]]:
    """The tokens that their own bytes encode to, by rank, each with the two parts that it is joined from."""
    halves: dict[int, tuple[int, int]] = {}
    for (left, right), rank in joins.items():
        parts_reachable = all(part < 256 or part in halves for part in (left, right))
        if parts_reachable and _seam_holds(left, right, rank, joins, halves):
            halves[rank] = left, right
    return halves


def _seam_holds(
    left: int, right: int, rank: int, joins: Mapping[tuple[int, int], int], halves: Mapping[int, tuple[int, int]]
) -> bool:
    """Whether no earlier merge joins something across the border of the two parts.

    Goes back in time: undoes the younger of the two tokens at the border, until both are bytes. Each pair on the way
    stood at the border until the older of its successors came; of merges of the same rank the leftmost came first.
    """
    left_until = right_until = rank
    while left >= 256 or right >= 256:
        if left > right:
            left_until, left = left, halves[left][1]
        else:
            right_until, right = right, halves[right][0]
        joined = joins.get((left, right), rank)
        if joined < left_until and joined <= right_until and joined < rank:
            return False
    return True


def merges_exact(piece: bytes, priorities: Mapping[Merge, int]) -> list[bytes]:
    """What the list of merges says, step by step: the first merge in the list, leftmost, until none applies."""
    parts = [piece[at : at + 1] for at in range(len(piece))]  # b"" once joined to the part before it
    after = list(range(1, len(parts) + 1))
    before = list(range(-1, len(parts) - 1))

    def priority(at: int) -> int | None:
        follower = after[at]
        return priorities.get((parts[at], parts[follower])) if follower < len(parts) else None

    queue = [(found, at) for at in range(len(parts)) if (found := priority(at)) is not None]
    heapify(queue)
    while queue:
        due, at = heappop(queue)
        if priority(at) != due:
            continue  # one of the two parts has been joined to another since
        joined = after[at]
        parts[at], parts[joined], after[at] = parts[at] + parts[joined], b"", after[joined]
        if after[at] < len(parts):
            before[after[at]] = at
        for changed in (before[at], at):
            if changed >= 0 and (found := priority(changed)) is not None:
                heappush(queue, (found, changed))
    return [part for part in parts if part]


def _exact_merger(model: BpeModel) -> Merger:
    priorities = {merge: index for index, merge in enumerate(model.merges)}
    return lambda piece: [model.ids[part] for part in merges_exact(piece, priorities)]


def _tiktoken_merger(model: BpeModel, ranks: dict[bytes, int]) -> Merger:
    # Bytes without an id have a rank because tiktoken panics on a byte it does not know; `encode` lets none through.
    encoding = Encoding("pieces", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
    ids = [-1] * (max(ranks.values()) + 1)
    for token, rank in ranks.items():
        ids[rank] = model.ids.get(token, -1)

    def merge(piece: bytes) -> list[int]:
        if len(piece) > _LONG_PIECE and (text := _text(piece)) is not None:
            return [ids[rank] for rank in encoding.encode_ordinary(text)]  # the pattern makes it one piece
        return [ids[rank] for rank in encoding._encode_single_piece(piece)]

    return merge


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _entries_only_whole(model: BpeModel, ranks: Mapping[bytes, int] | None) -> dict[bytes, int]:
    """Entries that merges never arrive at, but that a piece may be."""
    return {token: id for token, id in model.ids.items() if ranks is None or token not in ranks}
