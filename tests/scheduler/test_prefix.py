import pytest

from scheduler.blocks import BlockPool
from scheduler.prefix import ChainHasher
from scheduler.types import SamplingParams, Sequence


def sequence(tokens: list[int], salt: bytes = b"") -> Sequence:
    return Sequence(0, SamplingParams(1), tokens, len(tokens), 0.0, salt=salt)


def digests(tokens: list[int], salt: bytes = b"") -> list[bytes]:
    seq = sequence(tokens, salt)
    ChainHasher(2).extend(seq, len(tokens) // 2)
    return seq.hashes


def test_a_digest_names_the_whole_prefix() -> None:
    assert digests([1, 2, 3, 4])[0] == digests([1, 2, 9, 9])[0]
    assert digests([1, 2, 3, 4])[1] != digests([9, 9, 3, 4])[1]
    assert digests([1, 2, 1, 2])[0] != digests([1, 2, 1, 2])[1]


def test_a_salt_changes_every_digest() -> None:
    plain, salted = digests([1, 2, 3, 4]), digests([1, 2, 3, 4], b"tenant")
    assert not set(plain) & set(salted)


def test_digests_are_the_same_everywhere() -> None:
    known = ["995c06853284bbb846771fbc0096230b", "49a56eec21201bc37a29afd97f177847"]
    assert [digest.hex() for digest in digests([1, 2, 3, 70000])] == known


def test_each_block_is_hashed_once() -> None:
    hasher = ChainHasher(2)
    seq = sequence([1, 2, 3, 4, 5, 6])
    hasher.extend(seq, 1)
    seq.tokens[0] = 9  # would show if the first block were hashed again
    hasher.extend(seq, 3)
    assert seq.hashes == digests([1, 2, 3, 4, 5, 6])
    hasher.extend(seq, 2)
    assert len(seq.hashes) == 3


def cached(tokens: list[int]) -> tuple[BlockPool, list[int]]:
    """A pool that has published the full blocks of `tokens`."""
    pool = BlockPool(16, 2)
    blocks = pool.allocate(len(tokens) // 2) or []
    for block, digest in zip(blocks, digests(tokens), strict=True):
        pool.publish(block, digest)
    return pool, blocks


@pytest.mark.parametrize(
    ("prompt", "num_hits"),
    [
        ([1, 2, 3, 4, 5, 6, 7], 3),
        ([1, 2, 3, 4, 5, 6], 2),  # the last token is always computed
        ([1, 2, 3, 4, 5], 2),
        ([1, 2, 3, 9, 5, 6, 7], 1),
        ([9, 2, 3, 4, 5, 6, 7], 0),
        ([1, 2], 0),
        ([1], 0),
    ],
)
def test_match_finds_the_longest_published_prefix(prompt: list[int], num_hits: int) -> None:
    pool, blocks = cached([1, 2, 3, 4, 5, 6])
    assert ChainHasher(2).match(sequence(prompt), pool) == blocks[:num_hits]


def test_a_miss_hashes_no_further() -> None:
    seq = sequence(list(range(100)))
    ChainHasher(2).match(seq, BlockPool(16, 2))
    assert len(seq.hashes) == 1
