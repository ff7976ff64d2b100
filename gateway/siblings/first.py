"""The first gateway's side: starts the others, keeps them running, asks them, and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway.dashboard.elsewhere import Elsewhere
from gateway.http.ratelimit import Accounts
from gateway.metrics import Metrics
from gateway.siblings.messages import (
    LINK,
    Answer,
    Ask,
    Charges,
    Died,
    FromSibling,
    Hello,
    Left,
    Open,
    Prepared,
    Setup,
    Told,
    ToSibling,
    bodies,
    frame,
    from_sibling,
)
from gateway.siblings.sums import Series, added, lasting
from scheduler.protocol import FrameError

COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "gateway.siblings")
OPEN_S = 600.0  # from their start until they could serve; the engine loads its weights meanwhile
ASK_S = 1.0
SHUT_S = 5.0  # one that does not answer by then loses what it has in the engine, as by a death
TELL_S = 0.2  # between two messages of what clients with limits have used
FIRST_DELAY_S, MOST_DELAY_S, HEALTHY_S = 0.5, 30.0, 60.0
KILL_S = 5.0
GONE = -1  # among the series: of gateways that have ended

log = logging.getLogger("headrace.siblings")


class GatewayFailed(Exception):
    """One of several gateways did not start. One line."""


@dataclass(eq=False)
class Sibling:
    """One number, whatever process it is."""

    number: int
    process: asyncio.subprocess.Process | None = None
    writer: asyncio.StreamWriter | None = None  # while it is connected
    prepared: asyncio.Event = field(default_factory=asyncio.Event)  # the process of now serves, or waits for the word
    series: list[Series] = field(default_factory=list)  # as it told last
    asked: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)

    def send(self, message: ToSibling) -> None:
        if self.writer is not None:
            self.writer.write(frame(message))


class Siblings:
    """Others, and their processes. Used on the event loop of the first gateway."""

    def __init__(
        self,
        setup: Callable[[int], Setup],
        count: int,
        folder: Path,
        metrics: Metrics,
        environ: Mapping[str, str],
        command: Sequence[str] = COMMAND,
    ) -> None:
        """setup: of each by its number. folder: private to the server."""
        self.accounts = Accounts()
        self._setup = setup
        self._siblings = {number: Sibling(number) for number in range(1, count)}
        self._folder = folder
        self._metrics = metrics
        self._environ = environ
        self._command = command
        self._gone: list[Series] = []
        self._next_ask = 1
        self._is_open = False
        self._shut: dict[int, bool] = {}  # engines that are, and whether for a moment
        self._stopping = asyncio.Event()
        self._link: asyncio.Server | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._teller: asyncio.Task[None] | None = None

    # their processes

    async def start(self) -> None:
        """Returns once all of them could serve. Raises GatewayFailed."""
        if not self._siblings:
            return
        self._link = await asyncio.start_unix_server(self._hear, self._folder / LINK)
        self._teller = asyncio.create_task(self._tell_charges(), name="charges")
        self._keepers = [
            asyncio.create_task(self._keep(each), name=f"gateway {each.number}") for each in self._siblings.values()
        ]
        prepared = asyncio.create_task(self._all_prepared())
        try:
            async with asyncio.timeout(OPEN_S):
                await asyncio.wait({prepared, *self._keepers}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise GatewayFailed(f"not all gateways are ready after {OPEN_S:g} s") from None
        finally:
            prepared.cancel()
        for keeper in self._keepers:
            if keeper.done():
                keeper.result()

    async def _all_prepared(self) -> None:
        for each in self._siblings.values():
            await each.prepared.wait()

    def open(self) -> None:
        """The first gateway serves: so may they."""
        self._is_open = True
        for each in self._siblings.values():
            each.send(Open())

    def engine_died(self, engine: int, from_outside: bool) -> None:
        self._send_others(0, Died(engine, from_outside))

    def stop(self) -> None:
        """They begin to drain; told once more, they end at once."""
        self._stopping.set()
        for each in self._siblings.values():
            if each.process is not None and each.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    each.process.terminate()

    async def close(self, drain_timeout_s: float) -> None:
        """Waits for their end, then makes it."""
        if not self._stopping.is_set():
            self.stop()
        tasks = {task for task in (*self._keepers, self._teller) if task is not None}
        if self._teller is not None:
            self._teller.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=drain_timeout_s)
        self.kill()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=KILL_S)
        if self._link is not None:
            self._link.close()

    def kill(self) -> None:
        self._stopping.set()
        for each in self._siblings.values():
            if each.process is not None and each.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    each.process.kill()

    async def _keep(self, sibling: Sibling) -> None:
        """One process after another. Raises GatewayFailed if the first of them does not come to serve."""
        clock, delay_s, has_served = asyncio.get_running_loop().time, FIRST_DELAY_S, False
        while not self._stopping.is_set():
            began = clock()
            how = await self._live(sibling)
            has_served = has_served or sibling.prepared.is_set()
            self._lose(sibling)
            if self._stopping.is_set():
                return
            if not has_served:
                raise GatewayFailed(f"gateway {sibling.number} {how}, and has not served")
            delay_s = FIRST_DELAY_S if clock() - began >= HEALTHY_S else delay_s
            log.error("gateway %d %s; starting it again in %g s", sibling.number, how, delay_s)
            if await self._stops_within(delay_s):
                return
            delay_s = min(2 * delay_s, MOST_DELAY_S)
            self._metrics.gateway_restarted()

    async def _stops_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _live(self, sibling: Sibling) -> str:
        """From the start of a process to its end, which it tells. Its standard input stays open as long as we live."""
        try:
            sibling.process = process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                env=dict(self._environ),
                start_new_session=True,  # Ctrl-C reaches the first gateway alone, which tells them
            )
        except OSError as error:  # no file descriptors or memory are left: that may pass
            return f"cannot be started ({error.strerror})"
        assert process.stdin
        process.stdin.write(msgspec.json.encode(self._setup(sibling.number)) + b"\n")
        if self._stopping.is_set():  # meanwhile
            process.terminate()
        return f"ended with code {await process.wait()}"

    def _lose(self, sibling: Sibling) -> None:
        """Its process has ended; what it counted stays counted."""
        sibling.prepared.clear()
        sibling.process = None
        self._gone = added(self._gone, lasting(sibling.series))
        sibling.series = []
        self._know_series()
        self.accounts.lose(sibling.number)
        self._send_others(sibling.number, Left(sibling.number))
        self._count()

    def _count(self) -> None:
        self._metrics.gateways(1 + sum(each.prepared.is_set() for each in self._siblings.values()))

    # what they say

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sibling: Sibling | None = None
        try:
            async for body in bodies(reader):
                message = from_sibling.decode(body)
                if isinstance(message, Hello):
                    sibling = self._siblings[message.number]
                    sibling.writer = writer
                    for engine, pause in self._shut.items():
                        sibling.send(Ask(0, "shut", engine=engine, pause=pause))
                elif sibling is not None:
                    self._take(sibling, message)
        except (FrameError, msgspec.MsgspecError, KeyError) as error:
            log.error("a gateway does not speak the protocol: %s", error)
        except OSError as error:
            log.debug("the connection to a gateway broke: %s", error)
        finally:
            writer.transport.abort()
            if sibling is not None and sibling.writer is writer:
                sibling.writer = None

    def _take(self, sibling: Sibling, message: FromSibling) -> None:
        match message:
            case Prepared():
                sibling.prepared.set()
                self._count()
                if self._is_open:
                    sibling.send(Open())
            case Told():
                self._know(sibling, message.series)
            case Answer():
                asked = sibling.asked.get(message.ask_id)
                if asked is not None and not asked.done():
                    asked.set_result(message)
            case Charges():
                self.accounts.charge(sibling.number, message.spent, asyncio.get_running_loop().time())
                self._send_others(sibling.number, Charges(sibling.number, message.spent))

    def _know(self, sibling: Sibling, series: list[Series]) -> None:
        sibling.series = series
        self._know_series()

    def _know_series(self) -> None:
        known = {each.number: each.series for each in self._siblings.values() if each.series}
        self._metrics.elsewhere = known | ({GONE: self._gone} if self._gone else {})

    def _send_others(self, number: int, message: ToSibling) -> None:
        for each in self._siblings.values():
            if each.number != number:
                each.send(message)

    async def _tell_charges(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(TELL_S)
            if spent := self.accounts.take_spent(clock()):
                self._send_others(0, Charges(0, spent))

    # what they are asked

    async def ask_for_series(self) -> None:
        """Others'."""
        asked = [self._ask(each, Ask(0, "series")) for each in self._siblings.values()]
        for sibling, answer in zip(self._siblings.values(), await asyncio.gather(*asked), strict=True):
            if answer is not None and sibling.writer is not None:
                self._know(sibling, answer.series)

    async def live(self) -> list[Elsewhere]:
        """Others'."""
        answers = await asyncio.gather(*[self._ask(each, Ask(0, "live")) for each in self._siblings.values()])
        return [answer.live for answer in answers if answer is not None and answer.live is not None]

    async def timeline(self, request_id: str, key: str | None) -> bytes:
        """Others'."""
        asked = [self._ask(each, Ask(0, "timeline", request_id, key)) for each in self._siblings.values()]
        answers = await asyncio.gather(*asked)
        return next((answer.timeline for answer in answers if answer is not None and answer.timeline), b"")

    async def shut(self, engine: int, pause: bool) -> None:
        """Returns when no gateway gives it new work."""
        self._shut[engine] = pause
        asked = Ask(0, "shut", engine=engine, pause=pause)
        await asyncio.gather(*[self._ask(each, asked, SHUT_S) for each in self._siblings.values()])

    async def move(self, engine: int, wait_s: float, message: str) -> int:
        """What others have in it, once it is shut, after so long. Returns how many requests they were."""
        asked = Ask(0, "move", engine=engine, wait_s=wait_s, message=message)
        asking = [self._ask(each, asked, wait_s + SHUT_S) for each in self._siblings.values()]
        return sum(answer.moved for answer in await asyncio.gather(*asking) if answer is not None)

    async def reopen(self, engine: int) -> None:
        """Returns when they have found it, or soon after."""
        self._shut.pop(engine, None)
        asked = Ask(0, "open", engine=engine, wait_s=SHUT_S)
        await asyncio.gather(*[self._ask(each, asked, 2 * SHUT_S) for each in self._siblings.values()])

    async def _ask(self, sibling: Sibling, asked: Ask, within_s: float = ASK_S) -> Answer | None:
        """None: it did not answer in time."""
        if sibling.writer is None:
            return None
        ask_id, self._next_ask = self._next_ask, self._next_ask + 1
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        sibling.asked[ask_id] = answer
        sibling.send(msgspec.structs.replace(asked, ask_id=ask_id))
        try:
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            log.warning("gateway %d does not answer", sibling.number)
            return None
        finally:
            del sibling.asked[ask_id]
