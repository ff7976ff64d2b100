"""python -m gateway.siblings: one more gateway process, started by the first one, which it does not outlive."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.answers.live import Live
from gateway.assembly import Running, keep_what_is_there, known, load, server_of
from gateway.engines.replicas import client_of
from gateway.engines.socket import SocketEngine
from gateway.http.ending import Signals, aside, end_stragglers, within
from gateway.http.port import bind
from gateway.http.ratelimit import Accounts
from gateway.logs import configure_logging
from gateway.metrics import Metrics
from gateway.serve import keys_of, spans_of
from gateway.siblings.link import Link, follow
from gateway.siblings.messages import HTTP, Setup, engine_socket
from gateway.siblings.relay import Relay
from gateway.timeline.store import Timelines
from scheduler.protocol import Ready

CLOSE_S = 12.0


def main() -> int:
    setup = msgspec.json.decode(sys.stdin.buffer.readline(), type=Setup)
    configure_logging(setup.config.log_level, setup.config.log_format)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()  # until all is there
    return asyncio.run(_serve(setup))


async def _serve(setup: Setup) -> int:
    config, folder = setup.config, Path(setup.folder)
    signals = Signals()
    signals.install()
    metrics = Metrics(setup.replicas)
    engines = [SocketEngine(observer) for observer in metrics.engines]
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()

    def on_ready(told: Ready) -> None:
        if not ready.done():
            ready.set_result(told)

    accounts, timelines, live = Accounts(), Timelines(config.timelines), Live()
    link = Link(setup.number, folder, metrics, accounts, timelines, engines, live)
    following = asyncio.create_task(_follow(folder, engines, on_ready), name="engines")
    linked = asyncio.create_task(link.run(lambda: signals.receive(signal.SIGTERM)), name="link")
    spans = None
    try:
        with bind(setup.host, setup.port, shared=True) as listener:
            resolved = setup.model.resolved()
            model = await asyncio.to_thread(load, resolved, config)
            if not await _unless_stopped(_value(ready), signals):
                return 0
            model = known(model, resolved, ready.result())
            metrics.model = model.name
            spans = spans_of(config, model.name)
            running = Running(
                client_of(engines, config.prefix_caching),
                metrics,
                keys_of(config, time.monotonic),
                listener,
                signals,
                lambda: asyncio.shield(following),
                folder,
                spans,
                accounts,
                timelines,
                live=live,
            )
            server = server_of(running, model, config, around=lambda app: Relay(app, folder / HTTP))
            keep_what_is_there()
            if not await _unless_stopped(link.prepared(), signals):
                return 0
            return await server.run(lambda: None)
    finally:
        await within(CLOSE_S, asyncio.create_task(link.close()), signals.hurry)
        for task in (following, linked):
            task.cancel()
        if spans is not None:
            await within(CLOSE_S, asyncio.create_task(aside(spans.close)), signals.hurry)
        await end_stragglers()


async def _follow(folder: Path, engines: Sequence[SocketEngine], on_ready: Callable[[Ready], None]) -> None:
    """Never returns."""
    async with asyncio.TaskGroup() as group:
        for number, engine in enumerate(engines):
            group.create_task(follow(folder / engine_socket(number), engine, on_ready))


async def _unless_stopped(work: Coroutine[Any, Any, object], signals: Signals) -> bool:
    """Whether it came to its end before we were told to stop."""
    working, stop = asyncio.create_task(work), asyncio.create_task(signals.stop.wait())
    await asyncio.wait({working, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    return working.done() and signals.last is None


async def _value(ready: asyncio.Future[Ready]) -> Ready:
    return await ready


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)  # and with it the engine goes: there is nothing to drain for


if __name__ == "__main__":
    sys.exit(main())
