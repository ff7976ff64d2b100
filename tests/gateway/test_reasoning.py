"""Reasoning is told from the answer, whatever the cuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.answers.parts import Part, Reasoning, Text
from gateway.answers.reasoning import ReasoningFormat, reasoning_format
from tests.gateway.tool_formats import CUTS, pieces, read

FORMAT = ReasoningFormat()
PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<", "</thi", "\n", " ", "a", "é", "think>"]), max_size=12)


def whole(text: str, starts_inside: bool = False) -> list[Part]:
    return read(FORMAT.reader(starts_inside=starts_inside), [text])


@given(PIECES, CUTS, st.booleans())
def test_cuts_never_show(texts: list[str], cuts: list[int], starts_inside: bool) -> None:
    text = "".join(texts)
    expected = whole(text, starts_inside)
    assert read(FORMAT.reader(starts_inside=starts_inside), pieces(text, cuts)) == expected
    assert read(FORMAT.reader(starts_inside=starts_inside), text) == expected


@pytest.mark.parametrize("num_newlines", [1, 64, 65, 300])
def test_long_runs_of_newlines_are_cut_alike(num_newlines: int) -> None:
    text = "<think>a" + "\n" * num_newlines + "</think>b"
    assert read(FORMAT.reader(starts_inside=False), text) == whole(text)


@pytest.mark.parametrize(
    ("text", "starts_inside", "expected"),
    [
        ("<think>\nwhy\n</think>\n\nbecause\n", False, [Reasoning("why"), Text("because\n")]),
        ("\n<think>why</think>because", False, [Reasoning("why"), Text("because")]),
        ("why\n</think>\n\nbecause", True, [Reasoning("why"), Text("because")]),
        ("<think>\nwhy</think>because", True, [Reasoning("why"), Text("because")]),
        ("<think>\n\n</think>\n\nbecause", False, [Text("because")]),
        ("because <think>why</think>", False, [Text("because <think>why</think>")]),
        ("\n because", False, [Text("\n because")]),
        ("<think>a</think><think>b</think>", False, [Reasoning("a"), Text("<think>b</think>")]),
        ("<think>cut off", False, [Reasoning("cut off")]),
        ("cut off\n", True, [Reasoning("cut off")]),
        ("<thi", False, [Text("<thi")]),
        ("\n", False, [Text("\n")]),
        ("", True, []),
    ],
)
def test_only_a_block_at_the_start_is_reasoning(text: str, starts_inside: bool, expected: list[Part]) -> None:
    assert whole(text, starts_inside) == expected


def test_reasoning_is_given_out_as_it_comes() -> None:
    reader = FORMAT.reader(starts_inside=False)
    assert [reader.push(piece) for piece in ["<think>", "\n", "one", " two", "\n", "three"]] == [
        [], [], [Reasoning("one")], [Reasoning(" two")], [], [Reasoning("\nthree")]
    ]  # fmt: skip


def test_prompt_tells_whether_reasoning_has_begun() -> None:
    assert FORMAT.prompt_ends_inside("<|im_start|>assistant\n<think>\n")
    assert not FORMAT.prompt_ends_inside("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not FORMAT.prompt_ends_inside("<think> is a marker<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if '</think>' in content %}", FORMAT),
        ("{{ '[THINK]' }}", ReasoningFormat("[THINK]", "[/THINK]")),
        ("<thinking>", ReasoningFormat("<thinking>", "</thinking>")),
        ("{{ messages }}", None),
    ],
)
def test_format_is_told_by_the_template(source: str, expected: ReasoningFormat | None) -> None:
    assert reasoning_format(source) == expected
