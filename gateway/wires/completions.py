"""Answers of /v1/completions: text, with the prompt before it where it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from gateway.answers.choice import Delta
from gateway.answers.logprobs import completion_logprobs, echoed_logprobs, mean_logprob, prompt_logprobs
from gateway.errors import ApiError
from gateway.openai import CompletionChoice, CompletionLogprobs, PromptLogprobs, Usage, encode
from gateway.timeline.laps import Laps
from gateway.timeline.store import Timings, timings_of
from gateway.tokenizer.base import Tokenizer
from gateway.wires.base import DONE, Head, error_event, event
from scheduler.plan import PromptResult


@dataclass(frozen=True, slots=True)
class CompletionWants:
    """What a request asked of the answer's form. Sequence c of prompt p is number p*candidates + c."""

    prompts: list[list[int]]
    n: int = 1
    candidates: int = 1  # best_of
    echoes: list[str] = field(default_factory=list)  # one a prompt; empty: none asked for
    logprobs: bool = False
    usage: bool = False
    usage_on_each: bool = False
    token_ids: bool = False
    prompt_logprobs: bool = False
    timings: bool = False


@dataclass(slots=True)
class CompletionWire:
    head: Head
    tokenizer: Tokenizer
    wants: CompletionWants
    _opened: set[int] = field(default_factory=set)
    # By prompt: what the engine told of it, and that in the forms that its choices share.
    _read: dict[int, PromptResult] = field(default_factory=dict)
    _echoes: dict[int, CompletionLogprobs] = field(default_factory=dict)
    _told: dict[int, PromptLogprobs] = field(default_factory=dict)

    def opening(self) -> bytes:
        return b""

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        self._remember(delta)
        told = (usage() if self.wants.usage_on_each else None) if self.wants.usage else UNSET
        return b"".join(event(self.head.reply("text_completion", [each], told)) for each in self._choices(delta))

    def _choices(self, delta: Delta) -> Iterator[CompletionChoice]:
        index = delta.index
        if index not in self._opened:
            self._opened.add(index)
            if self.wants.echoes or self.wants.token_ids:
                yield CompletionChoice(
                    index, self._echo(index), self._echoed(index), None, prompt_token_ids=self._prompt_ids(index)
                )
        if delta.text or delta.marks or delta.tokens:
            yield CompletionChoice(index, delta.text, self._own(delta), None, token_ids=delta.tokens or UNSET)
        if delta.finish is not None:
            yield CompletionChoice(index, "", None, delta.finish, delta.stop)

    def ending(self, usage: Usage, laps: Laps) -> bytes:
        if not (self.wants.usage or self.wants.timings):
            return DONE
        told, timings = usage if self.wants.usage else UNSET, self._timings(laps)
        return event(self.head.reply("text_completion", [], told, timings=timings)) + DONE

    def _timings(self, laps: Laps) -> Timings | UnsetType:
        return timings_of(laps) if self.wants.timings else UNSET

    def failure(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, deltas: Sequence[Delta], usage: Usage, laps: Laps) -> bytes:
        for delta in deltas:
            self._remember(delta)
        choices = [self._whole_choice(place, delta) for place, delta in enumerate(self._best(deltas))]
        return encode(self.head.reply("text_completion", [*choices], usage, timings=self._timings(laps)))

    def _best(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Of each prompt's candidates the n of the highest log-probability a token, the best first."""
        n, candidates = self.wants.n, self.wants.candidates
        if n == candidates:
            return list(deltas)
        chosen = []
        for start in range(0, len(deltas), candidates):
            chosen += sorted(deltas[start : start + candidates], key=mean_logprob, reverse=True)[:n]
        return chosen

    def _whole_choice(self, place: int, delta: Delta) -> CompletionChoice:
        index = delta.index
        assert delta.finish is not None
        return CompletionChoice(
            place,
            self._echo(index) + delta.text,
            _joined(self._echoed(index), self._own(delta)),
            delta.finish,
            delta.stop,
            token_ids=delta.tokens if self.wants.token_ids else UNSET,
            prompt_token_ids=self._prompt_ids(index),
            prompt_logprobs=self._prompt_logprobs(index),
        )

    def _prompt_of(self, index: int) -> int:
        return index // self.wants.candidates

    def _remember(self, delta: Delta) -> None:
        """The first choice of a prompt brings what was asked about it; the others come later."""
        if delta.prompt is not None:
            self._read[self._prompt_of(delta.index)] = delta.prompt

    def _echo(self, index: int) -> str:
        return self.wants.echoes[self._prompt_of(index)] if self.wants.echoes else ""

    def _prompt_ids(self, index: int) -> list[int] | UnsetType:
        return self.wants.prompts[self._prompt_of(index)] if self.wants.token_ids else UNSET

    def _echoed(self, index: int) -> CompletionLogprobs | None:
        if not (self.wants.logprobs and self.wants.echoes):
            return None
        prompt = self._prompt_of(index)
        if prompt not in self._echoes:
            read, ids = self._read.get(prompt), self.wants.prompts[prompt]
            self._echoes[prompt] = echoed_logprobs(read, ids, self.tokenizer, self._echo(index))
        return self._echoes[prompt]

    def _own(self, delta: Delta) -> CompletionLogprobs | None:
        if not self.wants.logprobs:
            return None
        return completion_logprobs(delta.marks or (), self.tokenizer, len(self._echo(delta.index)))

    def _prompt_logprobs(self, index: int) -> PromptLogprobs | UnsetType:
        if not self.wants.prompt_logprobs:
            return UNSET
        prompt = self._prompt_of(index)
        if prompt not in self._told:
            self._told[prompt] = prompt_logprobs(self._read.get(prompt), self.wants.prompts[prompt], self.tokenizer)
        return self._told[prompt]


def _joined(first: CompletionLogprobs | None, second: CompletionLogprobs | None) -> CompletionLogprobs | None:
    if first is None or second is None:
        return second or first
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )
