"""Readers of tool calls: the cuts of the stream never show, arguments stay whole, and no text is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.answers.parts import CallArguments, CallStart, ChainedReader, Part, PlainReader, Text
from gateway.answers.reasoning import ReasoningFormat
from gateway.tools.base import Call
from tests.gateway.tool_formats import (
    CUTS,
    FORMATS,
    MARKERS,
    calls,
    found_calls,
    numbered,
    pieces,
    read,
    text_of,
)

WORDS = st.sampled_from(["", "Hello.", "a < b\n\n", " \n", "Let me see:\n", "é [x] {y}"])
each_format = pytest.mark.parametrize("name", FORMATS)
LONGER = ['{"name": "f", ', '"arguments": ', '"parameters": ', '"x"', "\\ud83d", "null", "true", "name", "a=", "{}"]
FRAGMENTS = st.sampled_from([*MARKERS, *LONGER, *"{}[]()<\"\\',;: \nfé1"])


def whole(name: str, text: str) -> list[Part]:
    return read(numbered(FORMATS[name]), [text])


@each_format
@settings(deadline=None, max_examples=50)
@given(written=st.lists(calls(), min_size=1, max_size=3), before=WORDS, after=WORDS, cuts=CUTS)
def test_calls_are_read_as_they_were_written(
    name: str, written: list[Call], before: str, after: str, cuts: list[int]
) -> None:
    if name in ("llama3_json", "pythonic"):
        before = ""
    text = before + FORMATS[name].render(written) + after
    parts = read(numbered(FORMATS[name]), pieces(text, cuts))
    found = found_calls(parts)
    assert [call.name for call in found] == [call.name for call in written]
    assert [json.loads(call.arguments) for call in found] == [json.loads(call.arguments) for call in written]
    if not name.startswith("pythonic"):
        assert [call.arguments for call in found] == [call.arguments for call in written]
    assert text_of(parts) == before.rstrip() + after.strip() + (after[len(after.rstrip()) :] if after.strip() else "")


@each_format
@settings(deadline=None, max_examples=50)
@given(written=st.lists(calls(), min_size=1, max_size=2), before=WORDS, after=WORDS)
def test_every_single_cut_gives_the_same_parts(name: str, written: list[Call], before: str, after: str) -> None:
    text = (before + FORMATS[name].render(written) + after)[:300]
    expected = whole(name, text)
    assert read(numbered(FORMATS[name]), text) == expected
    for cut in range(len(text) + 1):
        assert read(numbered(FORMATS[name]), [text[:cut], text[cut:]]) == expected


@each_format
@settings(deadline=None, max_examples=50)
@given(fragments=st.lists(FRAGMENTS, max_size=25), cuts=CUTS)
def test_garbage_never_raises_and_without_a_call_it_is_the_text(
    name: str, fragments: list[str], cuts: list[int]
) -> None:
    text = "".join(fragments)
    expected = whole(name, text)
    assert read(numbered(FORMATS[name]), pieces(text, cuts)) == expected
    assert read(numbered(FORMATS[name]), text) == expected
    json.dumps(text_of(expected)).encode()
    if not found_calls(expected):
        assert text_of(expected) == text


@each_format
@settings(deadline=None, max_examples=50)
@given(
    written=st.lists(calls(), min_size=1, max_size=2), at=st.integers(0, 300), length=st.integers(0, 4), new=FRAGMENTS
)
def test_mutated_calls_never_raise_and_lose_no_text(
    name: str, written: list[Call], at: int, length: int, new: str
) -> None:
    text = FORMATS[name].render(written)
    text = text[:at] + new + text[at + length :]
    expected = whole(name, text)
    assert read(numbered(FORMATS[name]), text) == expected
    if not found_calls(expected):
        assert text_of(expected) == text
    for part in expected:
        part_text = part.name if isinstance(part, CallStart) else part.text
        part_text.encode()


@each_format
def test_cut_answer_gives_what_came(name: str) -> None:
    text = FORMATS[name].render([Call("f", '{"a": [1, "x"]}'), Call("g", "{}")])
    for end in range(len(text)):
        found = found_calls(whole(name, text[:end]))
        assert [call.name for call in found] == ["f", "g"][: len(found)]
        if found:
            assert '{"a": [1, "x"]}'.startswith(found[0].arguments)


@each_format
def test_name_and_arguments_come_as_soon_as_they_are_known(name: str) -> None:
    reader, seen = numbered(FORMATS[name]), ""
    text = FORMATS[name].render([Call("look", '{"text": "' + "word " * 20 + '"}')])
    for character in text:
        parts = reader.push(character)
        seen += character
        if seen.endswith("word word"):
            assert parts == [CallArguments(0, "d")]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": ""}</tool_call>', [("f", "{}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\\\n\\"}"}', [("f", '{"a": "\\n"}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "x"}</tool_call>', [("f", '"x"')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\ud83d\\ude42}"}</tool_call>', [("f", "{🙂}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}}\n</tool_call>', [("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>', [("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"id": 1, "name": "f"}<tool_call>{"name": "g"}', [("f", "{}"), ("g", "{}")]),
        ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {}}', [("f", "{}")]),
        ("llama3_json", '{"type": "function", "name": "f", "parameters": {}};', [("f", "{}")]),
        ("llama3_json", '\n{"name": "f", "arguments": {}}\n{"name": "g", "arguments": {}}', [("f", "{}"), ("g", "{}")]),
        ("mistral_list", '[TOOL_CALLS] [ {"name": "f", "arguments": {}} ]', [("f", "{}")]),
        ("mistral_list", '[TOOL_CALLS]{"name": "f", "arguments": {}}', [("f", "{}")]),
        ("mistral_list", '[TOOL_CALLS]f[CALL_ID]a1[ARGS]{"a": 1}', [("f", '{"a": 1}')]),
        ("mistral_list", '[TOOL_CALLS]f{"a": 1}', [("f", '{"a": 1}')]),
        ("pythonic", "[f(a=1, b='it\\'s', c=(1, 2,), d={'k': None}, e=-.5)]", [
            ("f", '{"a": 1, "b": "it\'s", "c": [1, 2], "d": {"k": null}, "e": -0.5}')]),
        ("pythonic", "[f(a='''x\"y'''), g(), ]", [("f", '{"a": "x\\"y"}'), ("g", "{}")]),
        ("pythonic", "[f(a='\\x41\\u00e9\\U0001f642\\d')]", [("f", '{"a": "A\\u00e9\\ud83d\\ude42\\\\d"}')]),
        ("pythonic", "<|python_start|>[f(a=0x10)]<|python_end|>", [("f", '{"a": 16}')]),
    ],
)  # fmt: skip
def test_ways_to_write_a_call(name: str, text: str, expected: list[tuple[str, str]]) -> None:
    parts = whole(name, text)
    assert [(call.name, call.arguments) for call in found_calls(parts)] == expected
    assert text_of(parts) == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>\nnot json\n</tool_call> and more"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": ""}</tool_call>'),
        ("hermes", "if a <b and <tool_cal"),
        ("llama3_json", '{"name": "Ada", "age": 36}'),
        ("llama3_json", '  {"parameters": {}}\n'),
        ("llama3_json", 'The object {"name": "f", "parameters": {}} is quoted.'),
        ("mistral_list", "[TOOL_CALLS][]"),
        ("mistral_list", "[TOOL_CALLS]hello there"),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[link](https://example.com)"),
        ("pythonic", "[f(x)]"),
        ("pythonic", "[]"),
    ],
)
def test_what_is_no_call_is_text(name: str, text: str) -> None:
    assert whole(name, text) == [Text(text)]


def test_depth_is_no_danger() -> None:
    for name in FORMATS:
        for text in ("[" * 5000, "[f(a=" + "[" * 5000, "[f(a=" + "{1:" * 5000, "<tool_call>{" + '"a":[' * 5000):
            whole(name, text)


def test_text_after_a_broken_second_call_is_kept() -> None:
    text = '<tool_call>{"name": "f"}</tool_call>\nthen <tool_call>oops</tool_call>'
    assert whole("hermes", text) == [
        CallStart(0, "call_0", "f"),
        CallArguments(0, "{}"),
        Text("then <tool_call>oops</tool_call>"),
    ]


def test_reasoning_is_read_before_calls() -> None:
    text = '<think>\n<tool_call>{"name": "no"}</tool_call>\n</think>\n\n<tool_call>{"name": "yes"}</tool_call>'
    for cut in range(len(text)):
        reader = ChainedReader(ReasoningFormat().reader(starts_inside=False), numbered(FORMATS["hermes"]))
        parts = read(reader, [text[:cut], text[cut:]])
        assert [call.name for call in found_calls(parts)] == ["yes"]
        assert text_of(parts) == ""


def test_plain_reader_gives_text_only() -> None:
    assert read(PlainReader(), ["<tool", "", "_call>"]) == [Text("<tool_call>")]
