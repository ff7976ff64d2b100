"""What a program gets: one Result a prompt or conversation, with one Output for each of its n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from gateway.answers.choice import Delta, Mark
from gateway.answers.logprobs import prompt_logprobs, token_text
from gateway.answers.parts import Reasoning, Text
from gateway.openai import AnswerMessage, PromptLogprob, ToolCall, Usage, WireFinish
from gateway.requests.convert import Job
from gateway.timeline.store import Timings
from gateway.tokenizer.base import Tokenizer
from gateway.wires.chat import answer_parts, finish_of, tool_calls

LEAST = -9999.0  # of a log-probability, as the server tells it


@dataclass(frozen=True, slots=True)
class Logprob:
    """Of a token that could have stood at a place, or did."""

    logprob: float
    rank: int | None  # 1: the most likely; None: beyond those that were asked for
    decoded_token: str


Logprobs = list[dict[int, Logprob]]  # by token id, a place each


@dataclass(frozen=True, slots=True)
class Output:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: WireFinish
    stop_reason: str | int | None = None  # the stop string or stop id that ended it
    logprobs: Logprobs | None = None  # a place a token, the token itself always among them
    reasoning: str | None = None  # what the model thought before its answer
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def cumulative_logprob(self) -> float | None:
        if self.logprobs is None:
            return None
        return sum(place[token].logprob for place, token in zip(self.logprobs, self.token_ids, strict=True))

    @property
    def message(self) -> AnswerMessage:
        """May be appended to the messages as it is."""
        thought, calls = self.reasoning or UNSET, self.tool_calls or UNSET
        content = None if self.tool_calls and not self.text else self.text
        return AnswerMessage("assistant", content, None, thought, thought, calls)


@dataclass(frozen=True, slots=True)
class Result:
    prompt: str | None  # None: it was token ids, or a conversation
    prompt_token_ids: list[int]
    outputs: list[Output]  # n of them
    usage: Usage
    timings: Timings
    seed: int  # with which it comes out the same again
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # None: of the first token, which nothing predicted

    @property
    def text(self) -> str:
        """The first output's, as the next ones."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> WireFinish:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> Logprobs | None:
        return self.outputs[0].logprobs

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self.outputs[0].tool_calls

    @property
    def message(self) -> AnswerMessage:
        return self.outputs[0].message


def result_of(
    job: Job, prompt: str | None, deltas: Sequence[Delta], usage: Usage, timings: Timings, tokenizer: Tokenizer
) -> Result:
    """deltas: one a choice, each all of it."""
    ids, wants = job.prompts[0], job.params[0]
    ordered = sorted(deltas, key=lambda delta: delta.index)
    outputs = [_output(delta, tokenizer, wants.logprobs is not None) for delta in ordered]
    told = None
    if wants.prompt_logprobs is not None:
        told = [_place(place) for place in prompt_logprobs(ordered[0].prompt, ids, tokenizer)]
    return Result(prompt, ids, outputs, usage, timings, job.seed, told)


def _output(delta: Delta, tokenizer: Tokenizer, with_logprobs: bool) -> Output:
    parts = answer_parts(delta)
    calls = tool_calls(parts)
    return Output(
        index=delta.index,
        text="".join(part.text for part in parts if isinstance(part, Text)),
        token_ids=delta.tokens,
        finish_reason=finish_of(delta, bool(calls)),
        stop_reason=None if delta.stop is UNSET else delta.stop,
        logprobs=[_marked(mark, tokenizer) for mark in delta.marks or ()] if with_logprobs else None,
        reasoning="".join(part.text for part in parts if isinstance(part, Reasoning)) or None,
        tool_calls=calls,
    )


def _marked(mark: Mark, tokenizer: Tokenizer) -> dict[int, Logprob]:
    told = mark.logprob
    likely = {
        token: Logprob(max(LEAST, value), rank, token_text(token, tokenizer))
        for rank, (token, value) in enumerate(zip(told.top_ids, told.top_logprobs, strict=True), start=1)
    }
    if mark.token not in likely:
        likely[mark.token] = Logprob(max(LEAST, told.logprob), None, token_text(mark.token, tokenizer))
    return likely


def _place(told: dict[str, PromptLogprob] | None) -> dict[int, Logprob] | None:
    if told is None:
        return None
    return {int(token): Logprob(each.logprob, each.rank, each.decoded_token) for token, each in told.items()}
