"""The compiler, on the real model's vocabulary: which tokens a matcher allows, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from engine.grammar import MAX_GRAMMAR_CHARS, Compiler, Matcher
from gateway.engines.vocabulary import vocabulary_of
from gateway.model.load import load_served_model
from gateway.model.served import ServedModel
from scheduler.protocol import Vocabulary
from scheduler.types import Rejected

PADDING = 13  # rows of a model's head that stand for no token
COLOURS = 'start: "red" | "green" | "reddish"'


@pytest.fixture(scope="module")
def model(gguf_path: Path) -> ServedModel:
    return load_served_model(gguf_path, "default", 0)


@pytest.fixture(scope="module")
def compiler(model: ServedModel) -> Compiler:
    return Compiler(vocabulary_of(model), model.tokenizer.vocab_size + PADDING)


def allowed(matcher: Matcher, model: ServedModel) -> set[int]:
    size = model.tokenizer.vocab_size + PADDING
    mask = allocate_token_bitmask(1, size)
    fill_next_token_bitmask(matcher, mask)  # type: ignore[arg-type]
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:size]).tolist())


def texts(tokens: set[int], model: ServedModel) -> set[str]:
    return {model.tokenizer.decode([token]) for token in tokens}


def test_every_spelling_of_what_may_come_is_allowed(compiler: Compiler, model: ServedModel) -> None:
    """The model chooses between one long token and several short ones."""
    matcher = compiler.compile(COLOURS)
    assert texts(allowed(matcher, model), model) == {"r", "re", "red", "g", "gr", "gre", "green"}


def test_an_end_is_allowed_where_the_grammar_may_end(compiler: Compiler, model: ServedModel) -> None:
    (end,) = model.eos_ids
    matcher = compiler.compile(COLOURS)
    assert end not in allowed(matcher, model)
    matcher.consume_tokens(model.tokenizer.encode("red"))
    assert end in allowed(matcher, model)
    assert not matcher.is_stopped()


def test_where_nothing_may_follow_it_is_over(compiler: Compiler, model: ServedModel) -> None:
    matcher = compiler.compile(COLOURS)
    matcher.consume_tokens(model.tokenizer.encode("green"))
    assert matcher.is_stopped()
    assert not matcher.is_error()


def test_ids_of_no_bytes_and_control_tokens_are_never_allowed(compiler: Compiler, model: ServedModel) -> None:
    """Also where the grammar allows the characters that a control token is written with."""
    may_come = allowed(compiler.compile("start: /(.|\\n)*/"), model)
    assert max(may_come) < model.tokenizer.vocab_size
    assert may_come.intersection(model.tokenizer.special_ids.values()) == set(model.eos_ids)


@pytest.mark.parametrize(
    "grammar",
    [
        LLMatcher.grammar_from_json_schema({"type": "integer"}),
        LLMatcher.grammar_from_regex("-?[0-9]+"),
        "start: number\nnumber: /-?[0-9]+/  # no line follows",
        '%llguidance {"no_forcing": false}\nstart: /-?[0-9]+/',
        json.dumps({"grammars": [{"lark_grammar": "start: @n"}, {"name": "n", "json_schema": {"type": "integer"}}]}),
    ],
)
def test_all_forms_of_a_grammar_are_understood(compiler: Compiler, model: ServedModel, grammar: str) -> None:
    matcher = compiler.compile(grammar)
    assert {"-", "7"} <= texts(allowed(matcher, model), model) <= {"-", *"0123456789"}
    assert matcher.consume_tokens(model.tokenizer.encode("-42"))


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("start: foo", "unknown name"),
        ("", "no start"),
        ("{", "lists its grammars"),
        ('{"grammars": 5}', "lists its grammars"),
        ('{"grammars": []}', "lists its grammars"),
        (LLMatcher.grammar_from_json_schema({"type": "nonsense"}), "nonsense"),
        (LLMatcher.grammar_from_json_schema({"type": "string", "minLength": 3, "maxLength": 2}), "minLength"),
        (LLMatcher.grammar_from_regex("(["), "unclosed"),
        (f'start: "{"x" * MAX_GRAMMAR_CHARS}"', "characters"),
        ("start: " + " | ".join(f'"{i}" rule{i}' for i in range(5_000)), "unknown name"),
    ],
)
def test_a_bad_grammar_is_refused(compiler: Compiler, grammar: str, words: str) -> None:
    with pytest.raises(Rejected, match=words) as refused:
        compiler.compile(grammar)
    assert refused.value.code == "bad_grammar"
    assert len(refused.value.message) < 2000


def test_a_grammar_of_many_symbols_is_refused(compiler: Compiler) -> None:
    counted = " ".join(f'("a" | "b" start){{1,{count}}}' for count in range(300, 1800))
    with pytest.raises(Rejected, match="too big"):
        compiler.compile(f"start: {counted}")


def test_copies_go_their_own_ways(compiler: Compiler, model: ServedModel) -> None:
    base = compiler.compile(COLOURS)
    one = base.deep_copy()
    one.consume_tokens(model.tokenizer.encode("green"))
    assert one.is_stopped()
    assert not base.is_stopped()
    assert "g" in texts(allowed(base, model), model)


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary([b"a", b"b"], [], []),  # no end
        Vocabulary([b"a", b"b"], [], [2]),
        Vocabulary([b"a", b"b"], [-1], [0]),
        Vocabulary([b"a"] * 9, [], [0]),  # more than the model has
    ],
)
def test_a_vocabulary_of_another_model_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="token"):
        Compiler(vocabulary, 8)
