"""Answers of /chat/completions, byte for byte as nanochat's web server writes them: an event a piece of text, then one
that says that it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.answers.choice import Delta
from gateway.errors import ApiError
from gateway.http.error_shape import chat_web_body
from gateway.openai import Usage, encode
from gateway.requests.convert import Place
from gateway.timeline.laps import Laps
from gateway.wires.base import event

DONE = b'data: {"done": true}\n\n'


@dataclass(frozen=True, slots=True)
class ChatWebWire:
    place: Place

    @property
    def gpu(self) -> int:
        """The replica's number."""
        return self.place.replica

    def opening(self) -> bytes:
        return b""

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        if not delta.text:
            return b""
        return b'data: {"token": %b, "gpu": %d}\n\n' % (encode(delta.text), self.gpu)

    def ending(self, usage: Usage, laps: Laps) -> bytes:
        return DONE

    def failure(self, error: ApiError) -> bytes:
        """No event of nanochat's: its page passes over it, and the one that says done is missing."""
        return event(chat_web_body(error))

    def whole(self, deltas: Sequence[Delta], usage: Usage, laps: Laps) -> bytes:
        """There are streams only: what one would have sent."""
        return b"".join(self.events(delta, lambda: usage) for delta in deltas) + self.ending(usage, laps)
