"""What each output adds to a choice: checked output by output, without HTTP."""

import pytest

from gateway.answers.choice import Choice, ChoiceSpec, Delta
from gateway.requests.convert import TextRules
from scheduler.protocol import Output
from scheduler.types import FinishReason
from tests.fixtures.fakes import EOS, USER, ByteTokenizer, logprob_of


def choice(*stops: str, min_tokens: int = 0, logprobs: bool = False) -> Choice:
    ends = frozenset({EOS})
    return Choice(0, ChoiceSpec(ByteTokenizer(), TextRules(stops), ends, ends, min_tokens, logprobs))


def push(target: Choice, tokens: list[int], finish: FinishReason | None = None) -> Delta:
    return target.push(Output(0, tokens, finish, [logprob_of(token, 0, 0) for token in tokens]))


def texts(target: Choice, text: str) -> list[str]:
    return [push(target, [byte]).text for byte in text.encode()]


def test_only_whole_characters_leave() -> None:
    assert texts(choice(), "é🙂") == ["", "é", "", "", "", "🙂"]


def test_what_may_become_a_stop_string_is_held_back_and_no_more() -> None:
    assert texts(choice("abd"), "xabcab") == ["x", "", "", "abc", "", ""]


def test_held_back_text_leaves_at_the_end() -> None:
    target = choice("abd")
    push(target, [97, 98])
    delta = push(target, [EOS], "stop")
    assert (delta.text, delta.finish) == ("ab", "stop")


def test_half_a_character_leaves_at_the_end_as_a_replacement() -> None:
    assert push(choice(), [0xF0, 0x9F, EOS], "stop").text == "\ufffd"
    assert push(choice(), [97, 0xF0, 0x9F], "length").text == "a"  # cut


def test_a_stop_string_ends_the_choice_for_good() -> None:
    target = choice("b")
    delta = push(target, [97, 98, 99])
    assert (delta.text, delta.finish, target.num_tokens) == ("a", "stop", 2)
    assert not push(target, [100], "length")


def test_a_stop_string_in_the_very_last_tokens_is_a_stop() -> None:
    assert push(choice("b"), [97, 98], "length").finish == "stop"


def test_a_logprob_leaves_with_the_text_of_its_token() -> None:
    target = choice("-x", logprobs=True)
    left = [[mark.token for mark in push(target, [byte]).marks or []] for byte in "aé-b".encode()]
    assert left == [[97], [], [0xC3, 0xA9], [], [45, 98]]


def test_logprobs_of_cut_text_leave_at_the_end() -> None:
    delta = push(choice("bc", logprobs=True), [97, 98, 99])
    assert [mark.token for mark in delta.marks or []] == [97, 98, 99]


def test_a_control_token_keeps_the_order_of_logprobs() -> None:
    target = choice(logprobs=True)
    assert push(target, [0xC3, USER]).marks is None
    assert [mark.token for mark in push(target, [0xA9]).marks or []] == [0xC3, USER, 0xA9]


def test_missing_logprobs_are_a_broken_engine() -> None:
    with pytest.raises(RuntimeError):
        choice(logprobs=True).push(Output(0, [97], None, None))
