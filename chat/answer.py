"""One answer while it comes: its text, and what it took. Knows neither servers nor terminals."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from chat.client import Piece


class Show(Protocol):
    """Where an answer appears as it comes."""

    def reasoning(self, text: str) -> None: ...

    def text(self, text: str) -> None: ...

    def end(self) -> None:
        """Of this answer, whole or not."""


@dataclass(frozen=True, slots=True)
class Taken:
    """By one answer. Seconds; tokens as the server counts them, of a stopped answer as they came."""

    prompt_tokens: int = 0  # 0: unknown
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft_s: float | None = None  # None: nothing came
    decode_s: float = 0.0  # from the first to the last
    is_counted_here: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    finish: str  # "": it was stopped
    taken: Taken


def receive(pieces: Generator[Piece, None, None], show: Show, clock: Callable[[], float] = time.perf_counter) -> Answer:
    """Until the end or Ctrl-C, which closes the connection so that the server computes no further. Raises AskError."""
    began = first = last = clock()
    texts, num_events, finish, usage = list[str](), 0, "", None
    try:
        with closing(pieces):
            for piece in pieces:
                if piece.text or piece.reasoning:
                    last = clock()
                    first = last if not num_events else first
                    num_events += 1
                    texts.append(piece.text)
                    show.reasoning(piece.reasoning)
                    show.text(piece.text)
                finish, usage = piece.finish or finish, piece.usage or usage
    except KeyboardInterrupt:
        finish = ""
    finally:
        show.end()
    num = usage.completion_tokens if usage else num_events
    details = usage.prompt_tokens_details if usage else None
    taken = Taken(
        prompt_tokens=usage.prompt_tokens if usage else 0,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        output_tokens=num,
        ttft_s=first - began if num_events else None,
        decode_s=last - first,
        is_counted_here=usage is None,
    )
    return Answer("".join(texts), finish, taken)
