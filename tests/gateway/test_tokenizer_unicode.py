"""Every code point: our character classes and normaliser are those of the tokenizers library."""

from __future__ import annotations

import pytest
import regex
from tokenizers import Regex, normalizers, pre_tokenizers

from gateway.tokenizer.pretok import Cut, digits
from gateway.tokenizer.unicode import nfc

CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
BATCH = 1 << 15
BATCHES = ["".join(CHARACTERS[at : at + BATCH]) for at in range(0, len(CHARACTERS), BATCH)]
COMPOSABLE = regex.findall(r"\p{M}|\p{NFC_QC=N}|\p{NFC_QC=M}|\p{NFD_QC=N}", "".join(CHARACTERS))


def unmatched(reference: pre_tokenizers.PreTokenizer) -> list[str]:
    return ["".join(piece for piece, _ in reference.pre_tokenize_str(batch)) for batch in BATCHES]


@pytest.mark.parametrize("name", [r"\p{L}", r"\p{N}", r"\p{M}", r"\p{Lu}", r"\p{Ll}", r"\p{P}", r"\s"])
def test_character_class(name: str) -> None:
    runs = f"{name}+"
    cut = Cut(regex.compile(runs), keep_matches=False)
    assert ["".join(cut.split(batch)) for batch in BATCHES] == unmatched(pre_tokenizers.Split(Regex(runs), "removed"))


def test_numeric_characters() -> None:
    """Digits(individual) cuts between numeric characters, so numbers are what is cut off the letter before them."""
    reference, cut = pre_tokenizers.Digits(individual_digits=True), digits(individual=True)
    for batch in BATCHES:
        spaced = "a".join(batch)
        assert list(cut.split(spaced)) == [piece for piece, _ in reference.pre_tokenize_str(spaced)]


@pytest.mark.parametrize("before", ["", "a", "\u0345", "\u0323"])
@pytest.mark.parametrize("after", ["", "\u0301", "\u0323", "\u0334"])
def test_nfc_of_every_composable_character_between_others(before: str, after: str) -> None:
    text = "\n".join(f"{before}{character}{after}" for character in COMPOSABLE)
    assert nfc(text) == normalizers.NFC().normalize_str(text)
