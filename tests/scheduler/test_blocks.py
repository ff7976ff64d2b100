import pytest

from scheduler.blocks import BlockPool, SlotPool


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(6, block_size=4)  # 2 reserved, 4 usable


def publish(pool: BlockPool, blocks: list[int], *digests: bytes) -> None:
    for block, digest in zip(blocks, digests, strict=True):
        pool.publish(block, digest)


def test_the_two_reserved_blocks_are_never_handed_out(pool: BlockPool) -> None:
    assert pool.allocate(4) == [2, 3, 4, 5]
    assert pool.allocate(1) is None


def test_allocation_is_all_or_nothing(pool: BlockPool) -> None:
    pool.allocate(3)
    assert pool.allocate(2) is None
    assert pool.free == 1


def test_a_released_block_without_digest_is_fresh_again(pool: BlockPool) -> None:
    pool.release(pool.allocate(4) or [], fence=0)
    assert (pool.free, pool.cached) == (4, 0)


def test_a_published_block_is_found_after_its_release(pool: BlockPool) -> None:
    (block,) = pool.allocate(1) or []
    pool.publish(block, b"a")
    pool.release([block], fence=0)
    assert pool.find(b"a") == block
    assert (pool.free, pool.cached) == (4, 1)
    pool.acquire([block])
    assert (pool.free, pool.cached) == (3, 0)


def test_the_second_publication_of_a_digest_changes_nothing(pool: BlockPool) -> None:
    one, twin = pool.allocate(2) or []
    publish(pool, [one, twin], b"a", b"a")
    pool.release([twin], fence=0)
    assert pool.find(b"a") == one
    assert pool.cached == 0  # the twin stayed private: fresh again
    pool.check([[one]])


def test_a_block_is_published_once_and_only_while_held(pool: BlockPool) -> None:
    (block,) = pool.allocate(1) or []
    pool.publish(block, b"a")
    with pytest.raises(RuntimeError, match="cannot be published"):
        pool.publish(block, b"b")
    with pytest.raises(RuntimeError, match="cannot be published"):
        pool.publish(3, b"c")


def test_fresh_blocks_go_before_cached_ones(pool: BlockPool) -> None:
    (block,) = pool.allocate(1) or []
    pool.publish(block, b"a")
    pool.release([block], fence=0)
    assert block not in (pool.allocate(3) or [])
    assert pool.find(b"a") == block


def test_the_least_recently_released_is_evicted_first(pool: BlockPool) -> None:
    blocks = pool.allocate(4) or []
    publish(pool, blocks, b"a", b"b", b"c", b"d")
    pool.release(reversed(blocks), fence=0)
    pool.acquire([blocks[3]])  # used again: last in line after its release
    pool.release([blocks[3]], fence=0)
    assert pool.allocate(3) == [blocks[2], blocks[1], blocks[0]]
    assert [pool.find(digest) for digest in (b"a", b"b", b"c", b"d")] == [None, None, None, blocks[3]]


def test_a_held_block_is_not_evicted(pool: BlockPool) -> None:
    (block,) = pool.allocate(1) or []
    pool.publish(block, b"a")
    assert block not in (pool.allocate(3) or [])
    assert pool.allocate(1) is None


def test_a_shared_block_is_free_after_its_last_release(pool: BlockPool) -> None:
    (block,) = pool.allocate(1) or []
    pool.publish(block, b"a")
    pool.acquire([block])
    pool.release([block], fence=0)
    assert pool.free == 3
    pool.release([block], fence=0)
    assert pool.free == 4


def test_a_double_release_is_refused(pool: BlockPool) -> None:
    (block,) = pool.allocate(1) or []
    pool.release([block], fence=0)
    with pytest.raises(RuntimeError, match="without a reference"):
        pool.release([block], fence=0)


def test_a_fenced_block_waits_for_its_step(pool: BlockPool) -> None:
    blocks = pool.allocate(4) or []
    pool.settle(1)
    pool.release(blocks, fence=3)
    assert (pool.free, pool.fenced) == (0, 4)
    assert pool.allocate(1) is None
    pool.settle(2)
    assert pool.allocate(1) is None
    pool.settle(3)
    assert (pool.free, pool.fenced) == (4, 0)


def test_a_fenced_published_block_can_be_shared_at_once(pool: BlockPool) -> None:
    (block,) = pool.allocate(1) or []
    pool.publish(block, b"a")
    pool.release([block], fence=1)
    pool.acquire([block])
    assert pool.fenced == 0
    pool.settle(1)
    assert pool.free == 3
    pool.check([[block]])


@pytest.mark.parametrize("later", [1, 2])
def test_a_block_fenced_twice_waits_for_the_later_step(pool: BlockPool, later: int) -> None:
    (block,) = pool.allocate(1) or []
    pool.publish(block, b"a")
    pool.release([block], fence=1)
    pool.acquire([block])
    pool.release([block], fence=later)
    pool.settle(1)
    assert pool.fenced == later - 1
    pool.settle(2)
    assert (pool.free, pool.cached, pool.fenced) == (4, 1, 0)
    pool.check([])


def test_hits_count_as_free_until_acquired(pool: BlockPool) -> None:
    held, idle = pool.allocate(2) or []
    publish(pool, [held, idle], b"a", b"b")
    pool.release([idle], fence=0)
    assert pool.num_free_of([held, idle]) == 1


def test_check_notices_a_lost_reference(pool: BlockPool) -> None:
    blocks = pool.allocate(2) or []
    pool.check([blocks])
    with pytest.raises(RuntimeError, match="references"):
        pool.check([blocks[:1]])


@pytest.mark.parametrize(("total", "size"), [(2, 4), (0, 4), (8, 0)])
def test_a_pool_that_holds_nothing_is_refused(total: int, size: int) -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        BlockPool(total, size)


def test_a_slot_waits_for_its_fence() -> None:
    slots = SlotPool(2)
    first = slots.take()
    slots.release(first, fence=1)
    assert slots.take() != first
    assert slots.free == 0
    slots.settle(1)
    assert slots.take() == first


def test_check_notices_a_slot_given_back_twice() -> None:
    slots = SlotPool(2)
    slot = slots.take()
    slots.check([slot])
    slots.release(slot, fence=0)
    slots.release(slot, fence=0)
    with pytest.raises(RuntimeError, match="slots held"):
        slots.check([])
