"""From deltas to a response: as server-sent events, or whole. What the bytes are is the wire's business."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence

from gateway.answers.choice import Delta
from gateway.answers.generation import Generation
from gateway.errors import ApiError
from gateway.http import faults
from gateway.http.direct import Line
from gateway.http.exchange import Exchange
from gateway.timeline.laps import Laps
from gateway.wires.base import EVENTS, Framing, Wire

_log = logging.getLogger("headrace.stream")


class BrokenOff(Exception):
    """A stream that cannot tell of its failure must not end as if it were whole."""


class EventStream:
    """Events of one request, as bytes ready to send; what piled up since the last send goes out together."""

    def __init__(self, generation: Generation, wire: Wire, exchange: Exchange, framing: Framing = EVENTS) -> None:
        self._generation = generation
        self._wire = wire
        self._exchange = exchange
        self._framing = framing
        self._num_unfinished = len(generation.choices)

    async def events(self) -> AsyncGenerator[bytes]:
        """Raises BrokenOff where a failure cannot be told."""
        wire, generation = self._wire, self._generation
        try:
            opening = wire.opening()
            if opening:
                yield opening
            while self._num_unfinished:
                deltas = await generation.mailbox.take()
                self._num_unfinished -= sum(delta.finish is not None for delta in deltas)
                data = self._bytes_of(deltas)
                if not self._num_unfinished:
                    data += wire.ending(generation.usage(), self._exchange.laps)
                    self._exchange.outcome = outcome(generation)
                if data:
                    yield data
        except ApiError as error:
            self._exchange.fail(error)
            yield self._last_words(error)
        except Exception:
            _log.exception("request %s: its stream failed", self._exchange.request_id)
            fault = faults.internal(self._exchange.request_id)
            generation.stop("failed", fault)
            self._exchange.fail(fault)
            yield self._last_words(fault)
        finally:
            generation.mailbox.shortcut = None

    def _last_words(self, error: ApiError) -> bytes:
        if not self._framing.tells_failures:
            raise BrokenOff from error
        return self._wire.failure(error)

    def send_by(self, line: Line) -> None:
        """While `events` waits, what comes and ends nothing is sent at once, without the turn of a task. Not where
        choices share a send."""
        mailbox = self._generation.mailbox

        def send() -> bool:
            if not line.is_free():
                return False
            data = self._bytes_of(mailbox.take_now())
            if data:
                line.write(data)
            return True

        if len(self._generation.choices) == 1:
            mailbox.shortcut = send

    def _bytes_of(self, deltas: Sequence[Delta]) -> bytes:
        wire, usage, mailbox = self._wire, self._generation.usage, self._generation.mailbox
        data = b"".join([wire.events(delta, usage) for delta in deltas])
        if mailbox.remark:
            remark, mailbox.remark = mailbox.remark, b""
            return remark + data if self._framing.has_comments else data
        return data


def outcome(generation: Generation) -> str:
    if not generation.generates:
        return "ok"
    return "length" if any(choice.finish == "length" for choice in generation.choices) else "stop"


async def whole_answer(generation: Generation, wire: Wire, laps: Laps) -> bytes:
    """Raises the ApiError that ended the request."""
    await generation.finished()
    deltas = sorted(await generation.mailbox.take(), key=lambda delta: delta.index)
    return wire.whole(deltas, generation.usage(), laps)
