"""Conversations of /chat/completions in the log, where --log-conversations asks for them. No other line has texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from gateway.answers.choice import Delta
from gateway.chat_web.types import Message
from gateway.errors import ApiError
from gateway.logs import Event
from gateway.openai import Usage
from gateway.timeline.laps import Laps
from gateway.wires.base import Wire
from gateway.wires.chat_web import ChatWebWire

_log = logging.getLogger("headrace.conversation")


class Conversation(Event, frozen=True):
    says: ClassVar[str] = "conversation"

    messages: list[Message]
    answer: str
    gpu: int


@dataclass(frozen=True, slots=True)
class RecordingWire(Wire):
    """Logs a conversation when its answer ends, by itself or by a failure; of a client that leaves, nothing."""

    wire: ChatWebWire
    messages: list[Message]
    _texts: list[str] = field(default_factory=list)

    def opening(self) -> bytes:
        return self.wire.opening()

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        self._texts.append(delta.text)
        return self.wire.events(delta, usage)

    def ending(self, usage: Usage, laps: Laps) -> bytes:
        self._record()
        return self.wire.ending(usage, laps)

    def failure(self, error: ApiError) -> bytes:
        self._record()
        return self.wire.failure(error)

    def whole(self, deltas: Sequence[Delta], usage: Usage, laps: Laps) -> bytes:
        return b"".join(self.events(delta, lambda: usage) for delta in deltas) + self.ending(usage, laps)

    def _record(self) -> None:
        _log.info(Conversation(self.messages, "".join(self._texts), self.wire.gpu))
