"""Engines changed one at a time, while requests go on: what one has is moved to the others before its process ends.

    takes no work (at any gateway) -> what it has is moved -> its process ends -> drained
                                                                  |
                                    takes work <- ready <- started anew, perhaps with other settings

Where there is no other engine, requests wait for this one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from gateway.engines.handles import EngineLauncher
from gateway.engines.replicas import Replicas
from gateway.engines.socket import EngineFailed
from gateway.engines.supervisor import START_S
from gateway.http.ending import aside
from gateway.model.digest import tokenizer_digest
from gateway.rolling.change import Change, ChangeFailed, Refused
from gateway.rolling.settings import Settings, Unchangeable, Wiring, changed, settled
from gateway.rolling.types import EngineState, Kind, State
from scheduler.protocol import Progress

log = logging.getLogger("headrace.rolling")

CHECK_S = 3600.0  # for a model to be fetched
NOBODY_ASKS_S = 5.0


class OtherGateways(Protocol):
    """Of one server, which share its engines. Every wait is bounded."""

    async def shut(self, engine: int, pause: bool) -> None:
        """They give it no new work. pause: it will be back in a moment."""

    async def move(self, engine: int, wait_s: float, message: str) -> int:
        """What they have in it goes on elsewhere, after so long. Returns how many requests there were."""

    async def reopen(self, engine: int) -> None:
        """They give it work again, and have found it, as a rule."""


class Rolling:
    """One change at a time. Used on the event loop of the first gateway."""

    def __init__(
        self,
        replicas: Replicas,
        others: OtherGateways,
        settings: Settings,
        wiring: Wiring,
        is_stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """settings: all engines' at first. They have been ready."""
        self._replicas = replicas
        self._others = others
        self._settings = settings  # of the last reload that went well
        self._wiring = wiring
        self._is_stopping = is_stopping
        self._clock = clock
        count = len(replicas.engines)
        self._vocab_size = next(each.said.vocab_size for each in replicas.engines if each.said is not None)
        self._of: list[Settings] = [settings] * count
        self._launchers = [each.launcher for each in replicas.supervisors]
        self._states: list[State | None] = [None] * count  # None: as the supervisor has it
        self._since = [0.0] * count
        self._change: Change | None = None
        self._task: asyncio.Task[None] | None = None
        self._served = asyncio.create_task(aside(partial(tokenizer_digest, settings.resolved)), name="digest")

    # how things stand

    @property
    def settings(self) -> Settings:
        """Of the last reload that went well, or those of the start."""
        return self._settings

    @property
    def under_way(self) -> Change | None:
        return None if self._change is None or self._change.is_over else self._change

    def engines(self) -> list[EngineState]:
        return [self._state(number) for number in range(len(self._of))]

    def _state(self, number: int) -> EngineState:
        engine, supervisor = self._replicas.engines[number], self._replicas.supervisors[number]
        ready, known = engine.said, self._states[number]
        return EngineState(
            number,
            known or ("down" if ready is None else "up"),
            round(self._clock() - max(self._since[number], supervisor.changed_at), 3),
            supervisor.num_restarts,
            engine.num_open,
            self._of[number].shown(),
            supervisor.pid,
            None if ready is None else ready.device,
            None if ready is None else ready.max_model_len,
            None if ready is None else ready.max_seqs,
        )

    def _enter(self, number: int, state: State | None) -> None:
        self._states[number], self._since[number] = state, self._clock()

    # what is asked for

    def drain(self, number: int, force: bool) -> Change:
        """Raises Refused."""
        self._check(number)
        if self._states[number] == "drained":
            raise Refused("wrong_state", f"Engine {number} is drained already.")
        if not force and not any(each.takes_work for i, each in enumerate(self._replicas.engines) if i != number):
            message = f"No other engine serves but engine {number}. With force, requests wait until one does."
            raise Refused("last_engine", message)
        return self._begin("drain", lambda change: self._drain(change, number))

    def resume(self, number: int) -> Change:
        """Raises Refused."""
        self._check(number)
        if self._states[number] != "drained":
            raise Refused("wrong_state", f"Engine {number} is not drained.")
        return self._begin("resume", lambda change: self._resume(change, number))

    def reload(self, given: Mapping[str, Any]) -> Change:
        """Of these options, the others stay. Raises Refused."""
        self._check(0)
        try:
            config = changed(self._settings.config, given)
        except Unchangeable as error:
            raise Refused("reload_refused", error.message, error.param) from error

        async def roll(change: Change) -> None:
            settings, launchers = await self._settled(change, config)
            change.begin()
            for number, launcher in enumerate(launchers):
                await self._reload(change, number, settings, launcher)
            self._settings = settings

        return self._begin("reload", roll)

    def _check(self, number: int) -> None:
        if (change := self.under_way) is not None:
            raise Refused("change_under_way", f"A {change.kind} is under way: {change.last.message}.")
        if not 0 <= number < len(self._of):
            raise Refused("engine_not_found", f"There is no engine {number}, but {len(self._of)}, from 0.")

    def _begin(self, kind: Kind, work: Callable[[Change], Coroutine[Any, Any, None]]) -> Change:
        self._change = change = Change(kind)
        change.say("checking", f"a {kind} begins")
        self._task = asyncio.create_task(self._run(change, work), name=kind)
        return change

    async def _run(self, change: Change, work: Callable[[Change], Coroutine[Any, Any, None]]) -> None:
        try:
            await work(change)
            change.say("done", f"the {change.kind} is done")
        except Refused as refusal:
            change.refuse(refusal)
        except ChangeFailed as failure:
            change.say("failed", str(failure))
        except asyncio.CancelledError:
            change.say("failed", "the server ends")
            raise
        except Exception as error:  # whoever waits must hear of it
            log.exception("a %s failed", change.kind)
            change.say("failed", f"a fault of the server's own: {error!r}")

    async def close(self) -> None:
        """In bounded time."""
        for task in (self._served, self._task):
            if task is not None:
                task.cancel()
                await asyncio.wait({task}, timeout=NOBODY_ASKS_S)
                if not task.cancelled() and task.done() and task.exception() is not None:
                    log.debug("it had failed: %r", task.exception())

    # how it is done

    async def _settled(self, change: Change, config: Any) -> tuple[Settings, list[EngineLauncher]]:
        """Raises Refused."""
        try:
            async with asyncio.timeout(CHECK_S):
                served = await asyncio.shield(self._served)
                settings, launchers = await aside(partial(settled, self._wiring, config, served))
        except Unchangeable as error:
            raise Refused("reload_refused", error.message, error.param) from error
        except TimeoutError:
            raise Refused("reload_refused", f"The model was not there after {CHECK_S:g} s.") from None
        if len(launchers) != len(self._of):
            raise Refused("reload_refused", f"That would be {len(launchers)} engines, and there are {len(self._of)}.")
        return settings, list(launchers)

    async def _drain(self, change: Change, number: int) -> None:
        change.begin()
        await self._stop(change, number, pause=False)
        self._enter(number, "drained")
        change.say("drained", f"engine {number} is drained", number)

    async def _stop(self, change: Change, number: int, *, pause: bool) -> None:
        engine, supervisor = self._replicas.engines[number], self._replicas.supervisors[number]
        self._enter(number, "reloading" if pause else "draining")
        change.say("closing", f"engine {number} takes no new work", number)
        engine.shut(pause)
        await self._others.shut(number, pause)
        config = self._settings.config
        wait_s = 0.0 if config.migration else config.drain_timeout
        if wait_s and not await engine.emptied(0):
            change.say("moving", f"what engine {number} has may end by itself for {wait_s:g} s", number)
        message = "The engine was taken out of service before the answer was complete."
        of_others = asyncio.create_task(self._others.move(number, wait_s, message))
        await engine.emptied(wait_s)
        moved = engine.move(message) + await of_others
        becomes = "go on elsewhere" if config.migration else "are ended with an error"
        change.say("moving", f"{moved} requests of engine {number} {becomes}", number)
        change.say("stopping", f"engine {number} is stopped", number)
        await supervisor.halt()

    async def _open(self, number: int) -> None:
        self._replicas.engines[number].open()
        await self._others.reopen(number)
        self._enter(number, None)

    async def _resume(self, change: Change, number: int) -> None:
        change.begin()
        self._enter(number, "starting")
        try:
            await self._launch(change, number, self._launchers[number])
        except EngineFailed as failure:
            self._enter(number, "drained")
            raise ChangeFailed(f"engine {number} does not start, and stays drained: {failure.message}") from failure
        await self._open(number)
        change.say("up", f"engine {number} takes work", number)

    async def _reload(self, change: Change, number: int, settings: Settings, launcher: EngineLauncher) -> None:
        if self._is_stopping():
            raise ChangeFailed("the server is shutting down")
        if self._states[number] == "drained":
            self._of[number], self._launchers[number] = settings, launcher
            return change.say("drained", f"engine {number} is drained, and is resumed with the new settings", number)
        await self._stop(change, number, pause=True)
        try:
            await self._launch(change, number, launcher)
        except EngineFailed as failure:
            change.say("failed_start", f"engine {number} does not start anew: {failure.message}", number)
            await self._go_back(change, number)
            rest = "" if number == 0 else f"; {_those(number)} have the new settings"
            raise ChangeFailed(f"engine {number} does not start anew: {failure.message}{rest}") from failure
        self._of[number], self._launchers[number] = settings, launcher
        await self._open(number)
        return change.say("up", f"engine {number} takes work with the new settings", number)

    async def _go_back(self, change: Change, number: int) -> None:
        """To what it had before. Where that does not start either, it is tried again and again, as after a death."""
        launcher = self._launchers[number]
        try:
            await self._launch(change, number, launcher)
            change.say("up", f"engine {number} takes work with the settings of before", number)
        except EngineFailed as failure:
            change.say("failed_start", f"nor does it with those of before: {failure.message}", number)
            self._replicas.supervisors[number].keep_trying(launcher)
        await self._open(number)

    async def _launch(self, change: Change, number: int, launcher: EngineLauncher) -> None:
        """Raises EngineFailed, and then nothing runs."""
        change.say("starting", f"engine {number} is started", number)
        supervisor = self._replicas.supervisors[number]
        ready = await supervisor.launch(launcher, _unseen, START_S)
        if ready.vocab_size != self._vocab_size:
            await supervisor.halt()
            message = f"its vocabulary has {ready.vocab_size} tokens, and that which is served {self._vocab_size}"
            raise EngineFailed("model", message)


def _those(number: int) -> str:
    return "engine 0" if number == 1 else f"engines 0 to {number - 1}"


def _unseen(progress: Progress) -> None:
    """A start takes seconds, or the change says that it waits."""
