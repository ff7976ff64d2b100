"""The default model's tokenizer against the tokenizers library, id for id."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gateway.tokenizer.bpe_tokenizer import BpeTokenizer
from gateway.tokenizer.build import load_from_gguf
from tests.fixtures.reference_tokenizers import CORPUS, fuzz, smollm2

NUM_FUZZED = 24_000


@pytest.fixture(scope="module")
def reference(gguf_path: Path) -> Tokenizer:
    return smollm2(gguf_path)


@pytest.fixture(scope="module")
def tokenizer(gguf_path: Path) -> BpeTokenizer:
    return load_from_gguf(gguf_path)


@pytest.fixture(scope="module")
def strings(tokenizer: BpeTokenizer) -> list[str]:
    return list(fuzz(2026, NUM_FUZZED, list(tokenizer.special_ids)))


def reference_ids(reference: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in reference.encode_batch_fast(texts, add_special_tokens=False)]


def test_fuzzed_strings_with_control_tokens(tokenizer: BpeTokenizer, reference: Tokenizer, strings: list[str]) -> None:
    expected = reference_ids(reference, strings)
    assert [
        text for text, ids in zip(strings, expected, strict=True) if tokenizer.encode(text, specials=True) != ids
    ] == []


def test_fuzzed_strings_as_plain_text(tokenizer: BpeTokenizer, reference: Tokenizer, strings: list[str]) -> None:
    reference.encode_special_tokens = True
    try:
        expected = reference_ids(reference, strings)
    finally:
        reference.encode_special_tokens = False
    pairs = zip(strings, expected, strict=True)
    assert [text for text, ids in pairs if tokenizer.encode(text) != ids] == []


def test_fuzzed_ids_decode_to_the_same_text(tokenizer: BpeTokenizer, reference: Tokenizer, strings: list[str]) -> None:
    batch = [tokenizer.encode(text, specials=True)[1:] for text in strings[:4000]]  # [1:]: may begin within a character
    assert [tokenizer.decode(ids) for ids in batch] == reference.decode_batch(batch)
    expected = reference.decode_batch(batch, skip_special_tokens=False)
    assert [tokenizer.decode(ids, skip_special=False) for ids in batch] == expected


@pytest.mark.parametrize("text", [CORPUS, *CORPUS.splitlines(keepends=True), *CORPUS.split()], ids=lambda _: "text")
def test_corpus(tokenizer: BpeTokenizer, reference: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text, specials=True) == reference_ids(reference, [text])[0]


def test_control_tokens_round_trip(tokenizer: BpeTokenizer) -> None:
    for literal, token in tokenizer.special_ids.items():
        assert tokenizer.encode(literal, specials=True) == [token]
        assert tokenizer.token_bytes(token) == literal.encode()
        assert tokenizer.is_special(token)
        plain = tokenizer.encode(literal)
        assert not any(map(tokenizer.is_special, plain))
        assert tokenizer.decode(plain) == literal
        assert tokenizer.decode([*plain, token]) == literal
        assert tokenizer.decode([token], skip_special=False) == literal


def test_every_token_stands_for_the_librarys_bytes(tokenizer: BpeTokenizer, reference: Tokenizer) -> None:
    texts = reference.decode_batch([[token] for token in range(tokenizer.vocab_size)], skip_special_tokens=False)
    ours = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in range(tokenizer.vocab_size)]
    assert ours == texts


RUNS = ("a", " ", "\n", "1", "^", "é", "日", "\u0301", "🙂", "ab", "a ", " \n", "\x04", "<|im_", "'s")


@pytest.mark.parametrize("unit", RUNS)
def test_long_runs_are_exact_and_longer_ones_end(tokenizer: BpeTokenizer, reference: Tokenizer, unit: str) -> None:
    run = unit * (20_000 // len(unit))
    assert tokenizer.encode(run, specials=True) == reference_ids(reference, [run])[0]
    longer = unit * (400_000 // len(unit))  # half a second; quadratic would take hours, and run into the time limit
    assert tokenizer.decode(tokenizer.encode(longer), skip_special=False) == (longer if tokenizer.encode(unit) else "")


def test_the_fewest_tokens_are_never_more_than_there_are(tokenizer: BpeTokenizer, strings: list[str]) -> None:
    for text in [*strings, *(unit * 3000 for unit in RUNS), " " * 50_000]:
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, specials=True))
    assert tokenizer.fewest_tokens("7" * 15_000_000) > tokenizer.vocab_size


def test_halves_of_surrogate_pairs_are_replaced(tokenizer: BpeTokenizer) -> None:
    assert tokenizer.encode("a\ud83d b\ude42") == tokenizer.encode("a\ufffd b\ufffd")
    assert tokenizer.encode("\ud83d\ude42") == tokenizer.encode("🙂")


def test_threads_encode_alike(tokenizer: BpeTokenizer, strings: list[str]) -> None:
    texts = strings[:2000]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == [tokenizer.encode(text) for text in texts]
