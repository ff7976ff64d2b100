"""What the tests of tool calls share: every format, ways to cut a text, and calls to write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import count, pairwise
from typing import Any

from hypothesis import strategies as st

from gateway.answers.parts import CallArguments, CallStart, Part, Reader, Text, merged
from gateway.tools.base import Call, ToolFormat
from gateway.tools.hermes import HermesFormat
from gateway.tools.llama3_json import Llama3JsonFormat
from gateway.tools.mistral import MistralFormat
from gateway.tools.pythonic import PAIRS, PythonicFormat

FORMATS: dict[str, ToolFormat] = {
    "hermes": HermesFormat(),
    "llama3_json": Llama3JsonFormat(),
    "mistral_list": MistralFormat(by_name=False),
    "mistral_by_name": MistralFormat(by_name=True),
    "pythonic": PythonicFormat(),
    "pythonic_marked": PythonicFormat(PAIRS[0]),
}
MARKERS = sorted({marker for format in FORMATS.values() for marker in format.markers})
CUTS = st.lists(st.integers(0, 400), max_size=12)

_STRINGS = st.one_of(
    st.text(max_size=8),
    st.sampled_from([*MARKERS, '"', "\\", "\\u", "'", "}", "]})", "\n", "🙂", "\ud7ff", '{"name": "x"}', "f(a=1)"]),
    st.lists(st.sampled_from([*MARKERS, '"', "\\", "é", " "]), max_size=4).map("".join),
)
_KEYS = st.one_of(st.sampled_from(["a", "b_2", "name", "arguments", "parameters", "x y", "é", ""]), _STRINGS)
_NUMBERS = st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False))
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.sampled_from(["get_weather", "f", "a-b", "name", "x2"])
OBJECTS = st.dictionaries(_KEYS, _VALUES, max_size=4)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    arguments = json.dumps(draw(OBJECTS), ensure_ascii=draw(st.booleans()))
    return Call(draw(NAMES), arguments)


def pieces(text: str, cuts: Iterable[int]) -> Iterator[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return (text[start:end] for start, end in pairwise(edges))


def numbered(format: ToolFormat) -> Reader:
    numbers = count()
    return format.reader(lambda: f"call_{next(numbers)}")


def read(reader: Reader, pieces: Iterable[str]) -> list[Part]:
    parts = [part for piece in pieces for part in reader.push(piece)]
    return merged([*parts, *reader.finish()])


def found_calls(parts: Iterable[Part]) -> list[Call]:
    names: list[str] = []
    arguments: list[str] = []
    for part in parts:
        if isinstance(part, CallStart):
            assert part.call == len(names)
            names.append(part.name)
            arguments.append("")
        elif isinstance(part, CallArguments):
            arguments[part.call] += part.text
    return [Call(name, text) for name, text in zip(names, arguments, strict=True)]


def text_of(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))
