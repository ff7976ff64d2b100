"""Merges: the queue against the obvious loop, tiktoken against the queue, over lists of merges of every kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tokenizer.bpe import BpeModel, Merge, PieceEncoder, merges_exact, tiktoken_ranks
from gateway.tokenizer.bytelevel import from_spelling
from gateway.tokenizer.gguf_header import read_metadata

SMALL = [b"a", b"b", b"c"]


def obvious(piece: bytes, merges: Sequence[Merge]) -> list[bytes]:
    parts = [piece[at : at + 1] for at in range(len(piece))]
    while candidates := [(merges.index(pair), at) for at, pair in enumerate(pairwise(parts)) if pair in merges]:
        _, at = min(candidates)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def random_merges(seed: int, count: int) -> list[Merge]:
    """Each joins two tokens that exist by then, as training does; often one that makes a token there is already."""
    chance, tokens, merges = random.Random(seed), list(SMALL), []
    while len(merges) < count:
        pair = chance.choice(tokens), chance.choice(tokens)
        if pair not in merges and len(pair[0] + pair[1]) <= 9:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    return merges


def grouped(merges: Sequence[Merge]) -> list[Merge]:
    """All merges of a token where its first one is: condition 1."""
    first = {left + right: index for index, (left, right) in reversed(list(enumerate(merges)))}
    return sorted(merges, key=lambda merge: first[merge[0] + merge[1]])


def encoder(merges: Sequence[Merge]) -> tuple[PieceEncoder, dict[int, bytes]]:
    tokens = sorted({*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)})
    random.Random(0).shuffle(tokens)  # ids say nothing of the order of merges
    ids = {token: id for id, token in enumerate(tokens)}
    return PieceEncoder(BpeModel(ids, merges)), {id: token for token, id in ids.items()}


@given(st.integers(0, 1 << 30), st.integers(0, 14), st.text("abc", max_size=24))
def test_queue_does_what_the_obvious_loop_does(seed: int, count: int, text: str) -> None:
    merges = random.Random(seed).sample(random_merges(seed, count), count)  # any order at all
    priorities = {merge: index for index, merge in enumerate(merges)}
    assert merges_exact(text.encode(), priorities) == obvious(text.encode(), merges)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 30))
def test_tiktoken_does_what_the_merges_say(seed: int, count: int) -> None:
    merges = grouped(random_merges(seed, count))
    priorities = {merge: index for index, merge in enumerate(merges)}
    encode, tokens = encoder(merges)
    if not encode.uses_tiktoken:
        return
    chance = random.Random(seed)
    for _ in range(40):
        text = "".join(chance.choices("abc", k=chance.randint(1, 40)))
        assert [tokens[id] for id in encode.encode(text)] == merges_exact(text.encode(), priorities)


def test_tiktoken_over_all_short_texts_of_repeating_merges() -> None:
    merges = [(b"a", b"a"), (b"aa", b"a"), (b"aa", b"aa"), (b"a", b"b"), (b"b", b"aa"), (b"ba", b"a")]
    merges = [*merges[:4], (b"b", b"a"), *merges[4:]]
    priorities = {merge: index for index, merge in enumerate(merges)}
    encode, tokens = encoder(merges)
    assert encode.uses_tiktoken
    for text in map("".join, product("ab", repeat=12)):
        assert [tokens[id] for id in encode.encode(text)] == merges_exact(text.encode(), priorities)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 40))
def test_ranked_tokens_are_those_that_encode_to_themselves(seed: int, count: int) -> None:
    merges = grouped(random_merges(seed, count))
    ranks = tiktoken_ranks(merges)
    if ranks is None:
        return
    priorities = {merge: index for index, merge in enumerate(merges)}
    for token in {left + right for left, right in merges}:
        assert (token in ranks) == (merges_exact(token, priorities) == [token])


def test_ranked_tokens_of_the_real_vocabulary(gguf_path: Path) -> None:
    spelled = [str(merge).split(" ") for merge in read_metadata(gguf_path)["tokenizer.ggml.merges"]]  # type: ignore[union-attr]
    merges = [(from_spelling(left) or b"", from_spelling(right) or b"") for left, right in spelled]
    priorities = {merge: index for index, merge in enumerate(merges)}
    ranks = tiktoken_ranks(merges)
    assert ranks is not None
    for left, right in random.Random(0).sample(merges, 8000):
        assert (left + right in ranks) == (merges_exact(left + right, priorities) == [left + right])


@pytest.mark.parametrize(
    "merges",
    [
        [(b"ab", b"c"), (b"a", b"b")],  # used before it is made
        [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"b", b"b"), (b"ab", b"c")],  # one token, two phases
    ],
)
def test_other_lists_are_encoded_by_the_list(merges: list[Merge]) -> None:
    encode, tokens = encoder(merges)
    assert not encode.uses_tiktoken
    for text in map("".join, product("abc", repeat=6)):
        assert [tokens[id] for id in encode.encode(text)] == obvious(text.encode(), merges)


def test_entry_that_merges_never_reach_is_taken_only_whole_and_only_if_merges_are_ignored() -> None:
    ids = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abc": 257}
    merges = [(b"a", b"b")]
    assert PieceEncoder(BpeModel(ids, merges)).encode("abc") == [256, ord("c")]
    ignoring = PieceEncoder(BpeModel(ids, merges, ignore_merges=True))
    assert ignoring.encode("abc") == [257]
    assert ignoring.encode("abca") == [256, ord("c"), ord("a")]


def test_byte_without_entry_vanishes_or_is_unknown() -> None:
    ids = {b"a": 0, b"b": 1, b"ab": 2, b"?": 3}
    assert PieceEncoder(BpeModel(ids, [(b"a", b"b")])).encode("axbx") == [2]
    assert PieceEncoder(BpeModel(ids, [(b"a", b"b")], unknown_id=3)).encode("xxaxxabx") == [3, 3, 0, 3, 3, 2, 3]
    fusing = PieceEncoder(BpeModel(ids, [(b"a", b"b")], unknown_id=3, fuse_unknown=True))
    assert fusing.encode("xxaxxabx") == [3, 0, 3, 2, 3]
