"""What every API's form of an answer can do, and what its chunks share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from msgspec import UNSET, UnsetType

from gateway.answers.choice import Delta
from gateway.errors import ApiError
from gateway.openai import Choice, PromptLogprobs, Reply, ReplyObject, Usage, encode
from gateway.services import Services
from gateway.timeline.laps import Laps
from gateway.timeline.store import Timings

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of an answer share."""

    id: str
    created: int
    model: str
    fingerprint: str

    def reply(
        self,
        kind: ReplyObject,
        choices: list[Choice],
        usage: Usage | UnsetType | None,
        prompt_token_ids: list[int] | UnsetType = UNSET,
        prompt_logprobs: PromptLogprobs | UnsetType = UNSET,
        timings: Timings | UnsetType = UNSET,
    ) -> Reply:
        shared = (self.id, kind, self.created, self.model, self.fingerprint)
        return Reply(*shared, choices, usage, prompt_token_ids, prompt_logprobs, timings)


def new_head(services: Services, prefix: str) -> Head:
    unique = f"{prefix}-{services.random_bits(96):024x}"
    return Head(unique, int(services.wall_clock()), services.model.name, fingerprint(services))


def fingerprint(services: Services) -> str:
    """Changes with whatever may change the numbers: model, code, device, kernels."""
    ready = services.engine.ready
    parts = [services.model.name, services.version]
    if ready is not None:
        parts += [ready.architecture, ready.device, ready.dtype, ready.attention, str(ready.num_parameters)]
    return _digest("\0".join(parts))


@lru_cache(16)
def _digest(text: str) -> str:
    return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Framing:
    """What a stream's bytes are to whoever reads them."""

    media_type: str
    has_comments: bool  # what readers skip may stand between its parts: heart-beats
    tells_failures: bool  # or else one that fails breaks off, without the end of the answer that clients wait for


EVENTS = Framing("text/event-stream; charset=utf-8", has_comments=True, tells_failures=True)
PLAIN_TEXT = Framing("text/plain; charset=utf-8", has_comments=False, tells_failures=False)


class Wire(Protocol):
    """One API's form of one answer; made anew for each request, for it may remember what it has sent.

    A stream is opening, then events for each delta, then ending - or failure, after any of them. An answer that is not
    streamed is `whole`, with one delta a choice. All return bytes ready to send.
    """

    def opening(self) -> bytes:
        """Before the first delta. Empty: nothing."""

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        """What a delta brings; usage as it is so far, for who tells it. Empty: nothing yet."""

    def ending(self, usage: Usage, laps: Laps) -> bytes:
        """After every choice has finished; laps for who tells where the time went."""

    def failure(self, error: ApiError) -> bytes:
        """The last of a stream that failed after its first byte."""

    def whole(self, deltas: Sequence[Delta], usage: Usage, laps: Laps) -> bytes:
        """The body of an answer, from its choices in order."""


def event(data: object) -> bytes:
    return b"data: %b\n\n" % encode(data)


def error_event(error: ApiError) -> bytes:
    """Without [DONE] after it: its absence tells a reader that does not look at events that the answer is not whole."""
    return event(error.body())
