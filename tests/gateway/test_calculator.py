"""Answers that use nanochat's calculator: what the engine behind is asked, and what readers see."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from gateway.engines.calculator import CalculatingEngine
from gateway.engines.client import EngineUnavailable
from gateway.tokenizer.nanochat import NanochatTokenizer
from scheduler.protocol import Submit
from scheduler.types import FinishReason, Rejected, SamplingParams
from tests.fixtures.engines import RecordingSink
from tests.fixtures.fakes import FakeEngine, Script
from tests.fixtures.nanochat import SPECIAL_IDS, encoding

BOS, END = SPECIAL_IDS["<|bos|>"], SPECIAL_IDS["<|assistant_end|>"]
PYTHON, PYTHON_END = SPECIAL_IDS["<|python_start|>"], SPECIAL_IDS["<|python_end|>"]
OUTPUT, OUTPUT_END = SPECIAL_IDS["<|output_start|>"], SPECIAL_IDS["<|output_end|>"]
PROMPT = [BOS, *b"how many?"]
CALL = [PYTHON, *b"6*7", PYTHON_END]
RESULT = [OUTPUT, *b"42", OUTPUT_END]


def tokenizer() -> NanochatTokenizer:
    made = encoding()
    return NanochatTokenizer(made, {bytes([byte]): byte for byte in range(256)}, SPECIAL_IDS)


class Played:
    """A model that says the parts one after the other, however often it is asked anew; each is a script's outputs."""

    def __init__(self, *parts: list[int], finish: FinishReason = "stop") -> None:
        self.engine = FakeEngine(script=self._script)
        self.calculating = CalculatingEngine(self.engine, tokenizer(), self._sleep)
        self.sink = RecordingSink()
        self.num_sleeps = 0
        self._parts = list(parts)
        self._finish = finish

    async def _sleep(self, seconds: float) -> None:
        self.num_sleeps += 1
        await asyncio.sleep(0)

    def _script(self, submit: Submit, choice: int) -> Script:
        part = self._parts.pop(0)
        before = submit.generated[choice] if submit.generated else []
        return Script([[token] for token in [*before, *part]], "stop" if self._parts else self._finish)

    async def ask(self, choices: int = 1, **params: object) -> Submit:
        asked = SamplingParams(max_tokens=100, temperature=0.7, stop_ids=(END, BOS))
        request = Submit(
            self.calculating.new_ids(choices),
            PROMPT,
            msgspec.structs.replace(asked, **params),
            seeds=list(range(5, 5 + choices)),
            priority=3,
            max_wait_s=9.0,
            salt=b"salt",
        )
        await self.calculating.submit(request, self.sink)
        return request

    @property
    def finishes(self) -> list[FinishReason]:
        return [output.finish for output in self.sink.outputs if output.finish is not None]


async def test_a_result_goes_into_the_answer_and_the_answer_goes_on() -> None:
    played = Played([*b"it is ", *CALL], [*b"!", END])
    asked = await played.ask(min_tokens=1, prompt_logprobs=2)
    await played.sink.finished()
    assert played.sink.tokens == [*b"it is ", *CALL, *RESULT, *b"!", END]
    assert played.finishes == ["stop"]
    first, second = played.engine.submitted
    assert first == msgspec.structs.replace(
        asked, params=msgspec.structs.replace(asked.params, stop_ids=(END, BOS, PYTHON_END))
    )
    so_far = [*b"it is ", *CALL, *RESULT]
    rest = msgspec.structs.replace(first.params, prompt_logprobs=None, embed=False)
    assert second == msgspec.structs.replace(first, params=rest, max_wait_s=None, generated=[so_far])


async def test_the_first_token_is_told_once() -> None:
    played = Played(CALL, [END])
    await played.ask()
    await played.sink.finished()
    assert [output.first is not None for output in played.sink.outputs] == [True] + [False] * 6


async def test_an_answer_may_calculate_more_than_once() -> None:
    played = Played(CALL, [*b" ", *CALL], [PYTHON, *b"'abab'.count('b')", PYTHON_END], [END])
    await played.ask()
    await played.sink.finished()
    count = [PYTHON, *b"'abab'.count('b')", PYTHON_END, OUTPUT, *b"2", OUTPUT_END]
    assert played.sink.tokens == [*CALL, *RESULT, *b" ", *CALL, *RESULT, *count, END]


@pytest.mark.parametrize(
    "block",
    [
        [PYTHON, *b"import os", PYTHON_END],
        [PYTHON, *b"1/0", PYTHON_END],
        [PYTHON, PYTHON_END],
        [*b"6*7", PYTHON_END],
        [PYTHON, *b"1", OUTPUT, *b"+1", PYTHON_END],
    ],
    ids=["no expression", "no value", "empty", "no beginning", "a control token inside"],
)
async def test_what_cannot_be_computed_is_passed_over(block: list[int]) -> None:
    played = Played(block, [*b"?", END])
    await played.ask()
    await played.sink.finished()
    assert played.sink.tokens == [*block, *b"?", END]


async def test_a_second_beginning_starts_the_expression_anew() -> None:
    played = Played([PYTHON, *b"1+", *CALL], [END])
    await played.ask()
    await played.sink.finished()
    assert played.sink.tokens == [PYTHON, *b"1+", *CALL, *RESULT, END]


@pytest.mark.parametrize(
    ("max_tokens", "answer"), [(5, CALL), (7, [*CALL, *RESULT[:2]]), (9, [*CALL, *RESULT])], ids=str
)
async def test_results_count_as_tokens_of_the_answer(max_tokens: int, answer: list[int]) -> None:
    played = Played(CALL, [END])
    await played.ask(max_tokens=max_tokens)
    await played.sink.finished()
    assert (played.sink.tokens, played.finishes) == (answer, ["length"])
    assert len(played.engine.submitted) == 1


async def test_the_context_ends_an_answer_too() -> None:
    played = Played(CALL, [END])
    assert played.engine.ready is not None
    played.engine.ready = msgspec.structs.replace(played.engine.ready, max_model_len=len(PROMPT) + 7)
    await played.ask()
    await played.sink.finished()
    assert (played.sink.tokens, played.finishes) == ([*CALL, *RESULT[:2]], ["length"])


async def test_results_are_certain_where_log_probabilities_are_asked_for() -> None:
    played = Played(CALL, [END])
    await played.ask(logprobs=0)
    await played.sink.finished()
    told = [logprob for output in played.sink.outputs for logprob in output.logprobs or []]
    assert len(told) == len(played.sink.tokens)
    assert [logprob.logprob for logprob in told[5:9]] == [0.0] * 4


async def test_choices_calculate_apart() -> None:
    played = Played(CALL, [*b"no", END], [END])
    asked = await played.ask(choices=2)
    await played.sink.changes.until(lambda: len(played.finishes) == 2)
    by_id = {
        seq_id: [token for output in played.sink.outputs if output.seq_id == seq_id for token in output.tokens]
        for seq_id in asked.seq_ids
    }
    assert by_id == {asked.seq_ids[0]: [*CALL, *RESULT, END], asked.seq_ids[1]: [*b"no", END]}
    again = played.engine.submitted[1]
    assert (again.seq_ids, again.seeds) == (asked.seq_ids[:1], [5])


@pytest.mark.parametrize("params", [{"grammar": "start: /a/"}, {"stop_ids": (PYTHON_END,)}], ids=["grammar", "stop"])
async def test_an_answer_whose_form_is_asked_for_is_left_alone(params: dict[str, object]) -> None:
    played = Played(CALL)
    asked = await played.ask(**params)
    await played.sink.finished()
    assert played.engine.submitted == [asked]
    assert (played.sink.tokens, played.finishes) == (CALL, ["stop"])


async def test_a_full_queue_is_waited_for() -> None:
    played = Played(CALL, [END])
    played.engine.refusal = full_when(lambda: 0 < played.num_sleeps + len(played.engine.submitted) - 1 < 5)
    await played.ask()
    await played.sink.finished()
    assert played.num_sleeps > 1
    assert played.sink.tokens == [*CALL, *RESULT, END]


def full_when(is_full: Callable[[], bool]) -> Callable[[Submit], Exception | None]:
    return lambda submit: Rejected("queue_full", "full") if is_full() else None


async def test_it_is_not_waited_for_without_end() -> None:
    played = Played(CALL, [END])
    played.engine.refusal = full_when(lambda: len(played.engine.submitted) > 1)
    await played.ask()
    await played.sink.finished()
    assert played.finishes == ["error"]
    assert played.num_sleeps == 300


@pytest.mark.parametrize("error", [Rejected("too_long", "no"), RuntimeError("a mistake")], ids=str)
async def test_an_answer_that_cannot_go_on_ends_with_an_error(error: Exception) -> None:
    played = Played(CALL, [END])
    played.engine.refusal = lambda submit: error if len(played.engine.submitted) > 1 else None
    await played.ask()
    await played.sink.finished()
    assert (played.sink.tokens, played.finishes) == ([*CALL, *RESULT], ["error"])


async def test_the_engine_may_be_gone_by_then() -> None:
    played = Played(CALL, [END])
    gone = EngineUnavailable("It is gone.")
    played.engine.refusal = lambda submit: gone if len(played.engine.submitted) > 1 else None
    await played.ask()
    await played.sink.failed()
    (death,) = played.sink.failures
    assert (death.message, death.num_requests, death.explained.is_set()) == ("It is gone.", 0, True)
    assert played.calculating.num_held == 0


@pytest.mark.parametrize("part", [1, 2])
async def test_it_may_die_in_either_part(part: int) -> None:
    played = Played(CALL, [*b"long", END])
    played.engine.automatic = False
    await played.ask()
    if part == 2:
        for _ in CALL:
            played.engine.step()
        await played.engine.until(lambda: len(played.engine.submitted) == 2 and bool(played.engine.playing))
    played.engine.step()
    played.engine.die()
    assert [death.message for death in played.sink.failures] == ["The engine died."]
    assert played.calculating.num_held == 0


async def test_an_answer_whose_engine_died_in_a_block_is_computed_by_the_next() -> None:
    before, after = [*CALL, *RESULT, PYTHON, *b"6"], [*b"*7", PYTHON_END]
    played = Played(after, [END])
    asked = SamplingParams(max_tokens=100, stop_ids=(END, BOS))
    await played.calculating.submit(Submit([1], PROMPT, asked, seeds=[5], generated=[before]), played.sink)
    await played.sink.finished()
    assert played.sink.tokens == [*after, *RESULT, END]
    assert played.engine.submitted[1].generated == [[*before, *after, *RESULT]]


async def test_an_abort_holds_between_the_parts_too() -> None:
    played = Played(CALL, [*b"never", END])
    played.engine.automatic = False
    asked = await played.ask()
    for _ in CALL:
        played.engine.step()
    played.calculating.abort(asked.seq_ids)
    for _ in range(5):
        await asyncio.sleep(0)
    assert played.engine.aborted == asked.seq_ids
    assert len(played.engine.submitted) == 1
    assert played.sink.tokens == [*CALL, *RESULT]


async def test_a_refused_request_leaves_nothing_behind() -> None:
    played = Played(CALL)
    played.engine.refusal = full_when(lambda: True)
    with pytest.raises(Rejected):
        await played.ask()
    assert played.calculating.num_held == 0


async def test_nothing_is_left_of_answers_that_have_ended() -> None:
    played = Played(CALL, [END])
    await played.ask()
    assert played.calculating.num_held == 1
    await played.sink.finished()
    assert played.calculating.num_held == 0
