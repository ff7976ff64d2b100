"""POST /debug/profile: a profiler's trace of the engine's next steps, as a file for Perfetto."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from gateway.engines.client import EngineUnavailable
from gateway.engines.profiles import MAX_STEPS, MAX_TIMEOUT_S, NoProfile, Trace
from gateway.errors import ApiError
from gateway.http import faults
from gateway.http.exchange import Exchange, exchange_of
from gateway.http.race import ClientGone, Interrupt, MustStop, Presence
from gateway.http.routes import check_open
from gateway.requests.parse import invalid
from gateway.services import Services

STEPS, TIMEOUT_S = 20, 60.0
CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Asked:
    steps: int
    timeout_s: float

    @classmethod
    def of(cls, query: QueryParams) -> Asked:
        """Raises a 400 that names the parameter."""
        return cls(_steps(query.get("steps", str(STEPS))), _timeout(query.get("timeout_s", str(TIMEOUT_S))))


def _steps(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= MAX_STEPS):
        raise invalid("steps", f"steps must be a whole number between 1 and {MAX_STEPS}.", "value_out_of_range")
    return int(text)


def _timeout(text: str) -> float:
    try:
        seconds = float(text[:32])
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        message = f"timeout_s must be a number above 0, of at most {MAX_TIMEOUT_S:g}."
        raise invalid("timeout_s", message, "value_out_of_range")
    return seconds


class TakeProfile:
    """An ASGI application. Its request has no body."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services, exchange = self._services, exchange_of(scope)
        exchange.endpoint = "profile"
        if services.profiler is None:
            raise faults.profiling_off()
        asked = Asked.of(QueryParams(scope["query_string"]))
        check_open(services)
        try:
            with (
                Presence(receive),
                Interrupt() as interrupt,
                services.drain.when_forced(lambda: interrupt.now(MustStop())),
            ):
                async with services.profiler.trace(asked.steps, asked.timeout_s) as trace:
                    await self._send(trace, exchange, send)
        except NoProfile as no:
            raise faults.no_profile(no, asked.steps, asked.timeout_s) from no
        except EngineUnavailable as error:
            raise faults.engine_unavailable(services, error.message, error.retry_after_s) from error
        except MustStop:
            self._cut(faults.draining(services), exchange)
        except ClientGone:
            if not exchange.status:
                raise
            exchange.outcome = exchange.outcome or "client_closed"

    def _cut(self, error: ApiError, exchange: Exchange) -> None:
        """Once the file is on its way, only its missing end can tell the client."""
        if not exchange.status:
            raise error
        exchange.fail(error)

    async def _send(self, trace: Trace, exchange: Exchange, send: Send) -> None:
        headers = {
            "content-type": "application/json",
            "content-encoding": "gzip",
            "content-length": str(trace.num_bytes),
            "cache-control": "no-store",
            "x-headrace-steps": str(trace.num_steps),
        }
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": encoded})
        try:
            for end in range(CHUNK_BYTES, trace.num_bytes + CHUNK_BYTES, CHUNK_BYTES):
                chunk = await asyncio.to_thread(trace.file.read, CHUNK_BYTES)
                async with asyncio.timeout(self._services.settings.send_timeout_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": end < trace.num_bytes})
            exchange.outcome = "ok"
        except TimeoutError:
            exchange.fail(faults.slow_reader(CHUNK_BYTES))
