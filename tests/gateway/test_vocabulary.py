"""What an engine is told of the real model's tokens."""

from pathlib import Path

import pytest

from gateway.engines.vocabulary import vocabulary_of
from gateway.model.load import load_served_model
from gateway.model.served import ServedModel


@pytest.fixture(scope="module")
def model(gguf_path: Path) -> ServedModel:
    return load_served_model(gguf_path, "default", 0)


def test_tokens_are_by_id_and_spell_their_text(model: ServedModel) -> None:
    told = vocabulary_of(model)
    text = 'Größe: {"a": 1}\n🙂'
    assert len(told.tokens) == model.tokenizer.vocab_size
    assert b"".join(told.tokens[id] for id in model.tokenizer.encode(text)) == text.encode()


def test_control_tokens_are_told_apart(model: ServedModel) -> None:
    told = vocabulary_of(model)
    assert told.special_ids == sorted(model.tokenizer.special_ids.values())
    assert told.eos_ids == [2]
