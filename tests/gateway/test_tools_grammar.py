"""Whatever a grammar of calls lets through, the reader finds valid calls in it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from gateway.answers.parts import ChainedReader, Reasoning
from gateway.answers.reasoning import ReasoningFormat
from gateway.tools.base import Call, Tool, ToolFormat
from gateway.tools.grammar import wrap_after_reasoning
from gateway.tools.pythonic import PythonicFormat
from tests.gateway.tool_formats import FORMATS, MARKERS, found_calls, numbered, read, text_of

REASONING = ReasoningFormat()
SPECIALS = [*MARKERS, *REASONING.markers]
WORDS = [*SPECIALS, "get", '"', '"}', ": ", '{"', "\n", "True", "name"]
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "b": {"type": "string", "maxLength": 6},
        "c": {"type": "boolean"},
        "d": {"type": "array", "items": {"$ref": "#/$defs/pair"}, "maxItems": 2},
    },
    "required": ["b"],
    "additionalProperties": False,
    "$defs": {"pair": {"type": "object", "properties": {"x y": {"enum": ["é", 1, None, '"']}}, "required": ["x y"]}},
}
TOOLS = [
    Tool("get_one", parameters=SCHEMA, strict=True),
    Tool("get", parameters=None),
    Tool("list", parameters={"type": "object", "properties": {"n": {"type": "number"}}, "additionalProperties": False}),
]
each_format = pytest.mark.parametrize("name", FORMATS)
special_or_not = pytest.mark.parametrize("is_special", [False, True])


class Vocabulary:
    """All bytes, some words, and control tokens with the literals of the markers."""

    def __init__(self, is_special: bool) -> None:
        controls = SPECIALS if is_special else []
        self.tokens = [*(bytes([byte]) for byte in range(256)), *(word.encode() for word in WORDS)]
        self.special = {literal: len(self.tokens) + at for at, literal in enumerate(controls)}
        self.tokens += [literal.encode() for literal in controls]
        self.eos_token_id = len(self.tokens)
        self.tokens.append(b"</s>")
        self.special_token_ids = [*self.special.values(), self.eos_token_id]
        self.bos_token_id = None
        self.tokenizer = LLTokenizer(TokenizerWrapper(self))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)

    def encode(self, text: str) -> list[int]:
        if not self.special:
            return list(text.encode())
        parts = re.split(f"({'|'.join(map(re.escape, self.special))})", text)
        return [token for part in parts for token in ([self.special[part]] if part in self.special else part.encode())]

    def accepts(self, grammar: str, text: str) -> bool:
        matcher = LLMatcher(self.tokenizer, grammar)
        tokens = self.encode(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


VOCABULARIES = {is_special: Vocabulary(is_special) for is_special in (False, True)}


def walk(grammar: str, vocabulary: Vocabulary, seed: int, start: str = "") -> str | None:
    """A random answer that the grammar allows, with this start; None if it does not come to an end."""
    draw = random.Random(seed)
    matcher = LLMatcher(vocabulary.tokenizer, grammar)
    text = bytearray(start.encode())
    assert matcher.consume_tokens(vocabulary.encode(start)), matcher.get_error()
    closing = {ord(character) for character in '"}])'}
    for _ in range(400):
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(len(vocabulary.tokens)) if mask[token // 8] >> token % 8 & 1]
        assert allowed, matcher.get_error()
        if allowed == [vocabulary.eos_token_id] or (vocabulary.eos_token_id in allowed and draw.random() < 0.1):
            return text.decode()
        closers = [token for token in allowed if token in closing or token in vocabulary.special_token_ids[:-1]]
        token = draw.choice(closers if closers and draw.random() < 0.3 else allowed)
        if token != vocabulary.eos_token_id:
            assert matcher.consume_token(token), matcher.get_error()
            text += vocabulary.tokens[token]
    return None


def check_calls(calls: Sequence[Call], tools: Sequence[Tool], schemas: Mapping[str, Any]) -> None:
    for call in calls:
        assert call.name in {tool.name for tool in tools}
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])


SCHEMAS = {tool.name: tool.parameters or {"type": "object", "maxProperties": 0} for tool in TOOLS}


@each_format
@special_or_not
@pytest.mark.parametrize("parallel", [False, True])
def test_required_calls(name: str, is_special: bool, parallel: bool) -> None:
    format, vocabulary = FORMATS[name], VOCABULARIES[is_special]
    grammar = format.grammar(TOOLS, required=True, parallel=parallel, strict_only=False, special=vocabulary.special)
    assert not LLMatcher.validate_grammar(grammar, vocabulary.tokenizer)
    ended = 0
    for seed in range(16):
        text = walk(grammar, vocabulary, seed)
        if text is None:
            continue
        ended += 1
        parts = read(numbered(format), text)
        calls = found_calls(parts)
        assert text_of(parts) == "" and calls, text
        assert parallel or len(calls) == 1
        check_calls(calls, TOOLS, SCHEMAS)
    assert ended > 3


@each_format
@special_or_not
@pytest.mark.parametrize("parallel", [False, True])
def test_free_text_in_which_calls_are_held_to_their_form(name: str, is_special: bool, parallel: bool) -> None:
    format, vocabulary = FORMATS[name], VOCABULARIES[is_special]
    grammar = format.grammar(TOOLS, required=False, parallel=parallel, strict_only=True, special=vocabulary.special)
    assert not LLMatcher.validate_grammar(grammar, vocabulary.tokenizer)
    schemas = {tool.name: tool.parameters if tool.strict else {"type": "object"} for tool in TOOLS}
    counts = []
    for seed in range(24):
        text = walk(grammar, vocabulary, seed, beginning(format) if seed % 2 else "")
        if text is None:
            continue
        parts = read(numbered(format), text)
        calls = found_calls(parts)
        counts.append(len(calls))
        assert parallel or len(calls) <= 1
        assert calls or text_of(parts) == text
        check_calls(calls, TOOLS, schemas)
    assert 0 in counts and max(counts) > 0


def beginning(format: ToolFormat) -> str:
    """What every call of the format begins with."""
    return format.render([Call("get", "{}")]).partition("get")[0]


@each_format
@special_or_not
@pytest.mark.parametrize("required", [False, True])
def test_grammar_takes_what_the_format_writes(name: str, is_special: bool, required: bool) -> None:
    format, vocabulary = FORMATS[name], VOCABULARIES[is_special]
    one = [Call("get_one", '{"a": -3, "b": "x\\ny é", "d": [{"x y": null}, {"x y": "é"}]}')]
    two = [Call("get", "{}"), Call("list", '{"n": 1.5}')]
    for parallel, calls, accepted in (
        (False, one, True),
        (True, two, True),
        (True, one + two, True),
        (False, two, False),
    ):
        grammar = format.grammar(
            TOOLS, required=required, parallel=parallel, strict_only=False, special=vocabulary.special
        )
        text = format.render(calls).replace("None", "null")  # inside of values, the Python form is held to JSON
        assert vocabulary.accepts(grammar, text) is accepted, text
    assert vocabulary.accepts(grammar, "Just text, {not} [a] call.") is not required


@each_format
@special_or_not
@pytest.mark.parametrize("starts_inside", [False, True])
def test_calls_after_reasoning(name: str, is_special: bool, starts_inside: bool) -> None:
    format, vocabulary = FORMATS[name], VOCABULARIES[is_special]
    calls = format.grammar(TOOLS, required=True, parallel=False, strict_only=False, special=vocabulary.special)
    grammar = wrap_after_reasoning(calls, REASONING, starts_inside=starts_inside, special=vocabulary.special)
    assert not LLMatcher.validate_grammar(grammar, vocabulary.tokenizer)
    call = format.render([Call("get", "{}")])
    thought = "" if starts_inside else "<think>\n"
    assert vocabulary.accepts(grammar, f"{thought}I wonder {{\n</think>\n\n{call}")
    assert vocabulary.accepts(grammar, f"{thought}</think>{call}")
    assert vocabulary.accepts(grammar, call) is not starts_inside
    assert not vocabulary.accepts(grammar, f"{thought}why</think>because")
    ended = 0
    for seed in range(16):
        text = walk(grammar, vocabulary, seed)
        if text is None:
            continue
        ended += 1
        parts = read(ChainedReader(REASONING.reader(starts_inside=starts_inside), numbered(format)), text)
        assert len(found_calls(parts)) == 1 and text_of(parts) == "", text
        check_calls(found_calls(parts), TOOLS, SCHEMAS)
    assert ended > 3


@special_or_not
def test_any_grammar_can_come_after_reasoning(is_special: bool) -> None:
    vocabulary = VOCABULARIES[is_special]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    inner = LLMatcher.grammar_from_json_schema(schema, {"whitespace_flexible": False})
    for grammar in (inner, 'start: "{\\"a\\":1}"', LLMatcher.grammar_from_regex(r'\{"a":1\}')):
        wrapped = wrap_after_reasoning(grammar, REASONING, starts_inside=True, special=vocabulary.special)
        assert vocabulary.accepts(wrapped, 'hm </think>\n\n{"a":1}')
        assert not vocabulary.accepts(wrapped, "hm </think>\n\nno")
    nested = wrap_after_reasoning(wrapped, REASONING, starts_inside=True, special=vocabulary.special)
    assert vocabulary.accepts(nested, 'one</think>two</think>{"a":1}')


def test_schema_that_python_calls_cannot_enforce_is_refused() -> None:
    tool = Tool("f", parameters={"anyOf": [{"required": ["a"]}, {"required": ["b"]}]})
    with pytest.raises(ValueError, match="anyOf"):
        PythonicFormat().grammar([tool], required=True, parallel=False, strict_only=False, special={})


@each_format
def test_any_name_can_be_called(name: str) -> None:
    vocabulary = VOCABULARIES[False]
    tools = [Tool("a-b", parameters={"type": "object", "properties": {"x y": True, 'q"': {}, "é": {"type": "null"}}})]
    grammar = FORMATS[name].grammar(tools, required=True, parallel=True, strict_only=False, special={})
    calls = [Call("a-b", '{"x y": 1, "q\\"": [], "é": null}')]
    text = FORMATS[name].render(calls)
    assert vocabulary.accepts(grammar, text), LLMatcher.validate_grammar(grammar, vocabulary.tokenizer)
    assert [call.name for call in found_calls(read(numbered(FORMATS[name]), text))] == ["a-b"]


def test_reasoning_parts_are_no_text() -> None:
    reader = ChainedReader(REASONING.reader(starts_inside=False), numbered(FORMATS["hermes"]))
    assert read(reader, "<think>a</think>") == [Reasoning("a")]
