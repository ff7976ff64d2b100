"""The bytes behind a model's token ids, as engines are told them."""

from __future__ import annotations

from gateway.model.served import ServedModel
from scheduler.protocol import Vocabulary


def vocabulary_of(model: ServedModel) -> Vocabulary:
    tokenizer = model.tokenizer
    ids = range(tokenizer.vocab_size)
    special_ids = [id for id in ids if tokenizer.is_special(id)]
    return Vocabulary([tokenizer.token_bytes(id) for id in ids], special_ids, list(model.eos_ids))
