import pytest

from scheduler.policy import blocks_for, chunk_size, has_room, victim
from scheduler.types import SamplingParams, Sequence


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 4) == blocks


@pytest.mark.parametrize(
    ("start", "remaining", "limit", "count"),
    [
        (0, 10, 10, 10),  # finishes the prompt, wherever that ends
        (0, 11, 10, 8),  # ends on a boundary
        (8, 11, 7, 4),
        (6, 11, 7, 6),  # an odd start is brought back to a boundary
        (0, 11, 3, 3),  # less than a block is better than nothing
        (3, 11, 3, 1),
        (0, 11, 0, 0),
    ],
)
def test_chunk_size(start: int, remaining: int, limit: int, count: int) -> None:
    assert chunk_size(start, remaining, limit, block_size=4) == count


def test_has_room_counts_hits_that_are_free() -> None:
    assert has_room(num_new=2, num_free_hits=1, num_free=3, reserve=0)
    assert not has_room(num_new=2, num_free_hits=2, num_free=3, reserve=0)
    assert not has_room(num_new=2, num_free_hits=1, num_free=3, reserve=1)


def running(seq_id: int, computed: int, priority: int = 0) -> Sequence:
    return Sequence(seq_id, SamplingParams(1), [0], 1, 0.0, priority, computed=computed, order=seq_id)


def test_the_victim_has_the_lowest_priority_then_least_work_then_is_youngest() -> None:
    assert victim([running(1, 5), running(2, 99, priority=1), running(3, 1)], None).id == 2
    assert victim([running(1, 5), running(2, 3), running(3, 4)], None).id == 2
    assert victim([running(1, 3), running(2, 3), running(3, 4)], None).id == 2


def test_the_last_victim_is_spared_if_its_priority_has_another() -> None:
    assert victim([running(1, 5), running(2, 3)], spare=2).id == 1
    assert victim([running(1, 5), running(2, 3, priority=1)], spare=2).id == 2
