"""Other families' shapes, trained small: tokenizer.json through our loader against the library that wrote it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

from gateway.tokenizer.bpe_tokenizer import BpeTokenizer
from gateway.tokenizer.build import load_from_folder
from gateway.tokenizer.pretok import LLAMA3, QWEN2, QWEN35, TEKKEN
from tests.fixtures.reference_tokenizers import CORPUS, fuzz, split_then_bytes, train

NUM_FUZZED = 1500
CONTROL = [
    AddedToken("<|im_start|>", special=True, normalized=False),
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<|im", special=True, normalized=False),  # begins the other two
]
USERS = [
    AddedToken("<tool_call>", normalized=False),
    AddedToken("<tool", normalized=False),
    AddedToken("    ", normalized=False),
    AddedToken("résumé", normalized=True),
]
FLAGGED = [
    AddedToken("<l>", special=True, lstrip=True, normalized=False),
    AddedToken("<r>", special=True, rstrip=True, normalized=False),
    AddedToken("<lr>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("word", single_word=True, normalized=False),
    AddedToken("<n>", special=True, normalized=True),
    AddedToken("\u2126", special=True, normalized=True),  # the ohm sign, which NFC makes an omega
    AddedToken("Å", special=True, normalized=True),  # is also how the byte C5 is spelled
]

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
GPT4_STYLE = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(LLAMA3), "removed", invert=True), pre_tokenizers.ByteLevel(False, use_regex=False)]
)
DEEPSEEK_STYLE = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(
            Regex(r"[!-/:-@]?[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+(?!\S)|\s+"),
            "isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: train(BYTES, added=CONTROL),
    "smollm": lambda: train(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES]), added=CONTROL),
    "whole numbers": lambda: train(pre_tokenizers.Sequence([pre_tokenizers.Digits(False), BYTES])),
    "roberta": lambda: train(pre_tokenizers.ByteLevel(add_prefix_space=True), added=[*CONTROL, *USERS]),
    "gpt-neox": lambda: train(BYTES, nfc=True, added=[*CONTROL, *USERS]),
    "llama3": lambda: train(split_then_bytes(LLAMA3), added=CONTROL),
    "qwen2": lambda: train(split_then_bytes(QWEN2), nfc=True, added=[*CONTROL, *USERS]),
    "qwen35": lambda: train(split_then_bytes(QWEN35), nfc=True, added=[*CONTROL, *USERS]),
    "tekken": lambda: train(split_then_bytes(TEKKEN), added=CONTROL),
    "gpt-4": lambda: train(GPT4_STYLE),
    "deepseek": lambda: train(DEEPSEEK_STYLE, added=CONTROL),
    "flags": lambda: train(BYTES, nfc=True, added=[*CONTROL, *FLAGGED]),
    "missing bytes": lambda: train(BYTES, every_byte=False, vocab_size=500),
    "literal split": lambda: train(
        pre_tokenizers.Sequence([pre_tokenizers.Split("a b", "removed"), pre_tokenizers.Split(".", "isolated"), BYTES])
    ),
}


def saved(reference: Tokenizer, folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Tokenizer:
    """Writes tokenizer.json, changed; and what the library reads from it."""
    root = json.loads(reference.to_str())
    change(root)
    (folder / "tokenizer.json").write_text(json.dumps(root))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def differences(tokenizer: BpeTokenizer, reference: Tokenizer, *, seed: int = 7, count: int = NUM_FUZZED) -> list[str]:
    literals = [token.content for token in reference.get_added_tokens_decoder().values()]
    texts = [*fuzz(seed, count, literals), *CORPUS.splitlines(keepends=True), CORPUS]
    found = []
    for specials in (True, False):
        reference.encode_special_tokens = not specials
        batch = reference.encode_batch_fast(texts, add_special_tokens=False)
        pairs = zip(texts, batch, strict=True)
        found += [text for text, expected in pairs if tokenizer.encode(text, specials=specials) != expected.ids]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, tmp_path: Path) -> None:
    reference = saved(FAMILIES[family](), tmp_path)
    tokenizer = load_from_folder(tmp_path)
    assert tokenizer.vocab_size == reference.get_vocab_size()
    assert differences(tokenizer, reference) == []


def shuffled(root: dict[str, Any]) -> None:
    """Ids that say nothing of the order of merges."""
    vocab = root["model"]["vocab"]
    ids = list(vocab.values())
    random.Random(1).shuffle(ids)
    root["model"]["vocab"] = dict(zip(vocab, ids, strict=True))


def some_merges_lost(root: dict[str, Any]) -> None:
    """Entries that no merge arrives at; later merges need them."""
    root["model"]["merges"] = root["model"]["merges"][::2]
    made = {left + right for left, right in root["model"]["merges"]}
    usable = [m for m in root["model"]["merges"] if all(len(part) == 1 or part in made for part in m)]
    root["model"]["merges"] = usable


def longest_merges_first(root: dict[str, Any]) -> None:
    """An order in which tokens are used before they are made."""
    root["model"]["merges"].sort(key=lambda merge: -len("".join(merge)))


def old_merges(root: dict[str, Any]) -> None:
    root["model"]["merges"] = [" ".join(merge) for merge in root["model"]["merges"]]
    del root["model"]["type"]


def ignoring_merges(root: dict[str, Any]) -> None:
    root["model"]["ignore_merges"] = True
    some_merges_lost(root)


def with_unknown(*, fuse: bool) -> Callable[[dict[str, Any]], None]:
    def change(root: dict[str, Any]) -> None:
        model = root["model"]
        kept = ["<unk>", *(token for token in model["vocab"] if not set(token) & set("bcdtBCDTð"))]
        model["vocab"] = {token: id for id, token in enumerate(kept)}
        model["merges"] = [merge for merge in model["merges"] if {*merge, "".join(merge)} <= set(kept)]
        model.update(unk_token="<unk>", fuse_unk=fuse)
        for id, token in enumerate(root["added_tokens"], start=len(kept)):
            token["id"] = id

    return change


@pytest.mark.parametrize(
    "change",
    [
        shuffled,
        some_merges_lost,
        longest_merges_first,
        old_merges,
        ignoring_merges,
        pytest.param(with_unknown(fuse=False), id="unknown"),
        pytest.param(with_unknown(fuse=True), id="fused unknown"),
    ],
    ids=lambda change: change.__name__,
)
def test_odd_vocabulary(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    reference = saved(FAMILIES["llama3"](), tmp_path, change)
    assert differences(load_from_folder(tmp_path), reference, count=1000) == []


def test_added_token_bytes_are_its_literal_and_padding_has_none(tmp_path: Path) -> None:
    saved(FAMILIES["qwen2"](), tmp_path)
    tokenizer = load_from_folder(tmp_path, vocab_size=2000)
    assert tokenizer.vocab_size == 2000
    assert tokenizer.token_bytes(tokenizer.special_ids["<|im_end|>"]) == b"<|im_end|>"
    assert tokenizer.token_bytes(1999) == b""
    assert not tokenizer.is_special(1999)
    for token in (-1, 2000):
        with pytest.raises(IndexError):
            tokenizer.token_bytes(token)


def test_merge_that_spells_a_control_token_is_left_out(tmp_path: Path) -> None:
    """Else plain text would become the token by merges."""
    reference = train(BYTES, added=[AddedToken("the", special=True, normalized=False)])
    saved(reference, tmp_path)
    tokenizer = load_from_folder(tmp_path)
    control = tokenizer.special_ids["the"]
    assert reference.token_to_id("the") == control
    assert control in tokenizer.encode("in the mill", specials=True)
    assert control not in tokenizer.encode("the mill, the stream, there")
    assert tokenizer.decode(tokenizer.encode("the mill, the stream, there")) == "the mill, the stream, there"
