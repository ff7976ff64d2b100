"""What becomes of a request whose engine died: what it has is submitted again, prompt and accepted tokens, to whichever
engine takes work next, and its answer goes on where it was. Text, stop strings and logprobs never left the gateway.

    engine dies -> wait for an engine -> wait for its turn -> submitted -> every sequence is heard of again
                         ^                                                        |
                         +------------------- dies once more --------------------+

Where a request may have been the cause, one at a time goes back, and the next when that one has new tokens. So one that
makes engines die is found out: it dies twice in a row without a token in between, and its neighbours, not yet back, do
not. After a process was killed from outside all go back at once, unless that is how it goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Protocol

import msgspec

from gateway.engines.client import Death, EngineUnavailable
from gateway.errors import ApiError
from gateway.http import faults
from gateway.http.exchange import Exchange
from gateway.requests.convert import Job
from gateway.services import Services
from scheduler.protocol import Submit
from scheduler.types import Rejected

_log = logging.getLogger("headrace.generation")

REMARK = b": migrated\n\n"  # in a stream: a comment, which every client must skip
MAX_BLAMED = 2  # deaths in a row, without a token in between, that may be this request's doing
MAX_IN_A_ROW = 5  # of any kind
MAX_MOVES = 64
MAX_TOKENS = 1 << 22  # of a submission: 5 bytes each at most
TURN_S = 10.0  # after which others go back too: it may have to wait in the engine's queue
EXPLAIN_S = 3.0
RETRY_S = 1.0  # where the queue is full


class Part(Protocol):
    """One sequence of a request, as far as a submission tells of it."""

    prompt: int
    leads: bool

    @property
    def index(self) -> int:
        """Of the request's choices, over all of its prompts."""

    @property
    def accepted(self) -> Sequence[int]:
        """The tokens that the gateway has of it."""


def groups(job: Job, parts: Mapping[int, Part]) -> list[list[int]]:
    """Sequences that go in one submission: those of one prompt, the first of them first, and not more tokens than a
    frame holds with ease."""
    found: list[list[int]] = []
    last, num_tokens = None, 0
    for seq_id, part in sorted(parts.items()):
        size = len(part.accepted)
        if part.prompt != last or num_tokens + size > MAX_TOKENS:
            found.append([])
            last, num_tokens = part.prompt, len(job.prompts[part.prompt])
        found[-1].append(seq_id)
        num_tokens += size
    return found


def submission(job: Job, parts: Mapping[int, Part], max_wait_s: float | None, tenant: int = 0) -> Submit:
    """Of sequences of one prompt, by their ids, from where they are. A prompt is not read again, once it was told; who
    has been let in does not wait for at most so long again."""
    some = next(iter(parts.values()))
    params = job.params[some.prompt]
    if params.reads_prompt and not any(part.leads and not part.accepted for part in parts.values()):
        params = msgspec.structs.replace(params, prompt_logprobs=None, embed=False)
    generated = [list(part.accepted) for part in parts.values()]
    has_begun = any(generated)
    return Submit(
        list(parts),
        job.prompts[some.prompt],
        params,
        [job.seeds[part.index] for part in parts.values()],
        job.priority,
        None if has_begun else max_wait_s,
        job.salt,
        generated if has_begun else [],
        tenant,
    )


class Host(Protocol):
    """The generation that is moved."""

    def again(self, seq_ids: Iterable[int]) -> list[Submit]:
        """Those that have not ended, from where they are."""

    async def submit(self, request: Submit) -> None:
        """Raises what the engine's client raises, and then nothing of it runs."""

    def resumed(self, away_s: float) -> None:
        """The first of its sequences goes on."""

    def stop(self, cause: str, error: ApiError) -> None: ...


class Migration:
    """Of one request; does nothing until its engine dies."""

    def __init__(self, services: Services, exchange: Exchange, host: Host) -> None:
        self.unheard: set[int] = set()  # submitted again, and no token yet
        self._services = services
        self._exchange = exchange
        self._host = host
        self._lost: set[int] = set()  # in no engine
        self._deaths: list[Death] = []  # in a row, without news of every sequence in between
        self._num_moves = 0
        self._lost_at: float | None = None  # None: it runs
        self._heard = asyncio.Event()  # of all that were submitted again
        self._settled = asyncio.Event()  # nothing is under way
        self._settled.set()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_under_way(self) -> bool:
        return not self._settled.is_set()

    def begin(self, death: Death, lost: set[int]) -> None:
        """lost: the sequences that it had. Again, where others of them are on their way already."""
        if not self.unheard:
            self._deaths.clear()
        if death.num_requests or not self._deaths:  # or else: of what was not in it, but on its way
            self._deaths.append(death)
        self._lost |= lost
        self.unheard -= lost  # the others are in an engine that lives
        self._num_moves += not death.planned
        self._settled.clear()
        if self._lost_at is None:
            self._lost_at = self._services.clock()
            self._exchange.laps.enter("migration")
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._move(death), name="migration")

    def heard(self, seq_id: int) -> None:
        """Of one that is in `unheard`: new tokens, or its end."""
        self.unheard.discard(seq_id)
        if self._lost_at is not None:
            away_s, self._lost_at = self._services.clock() - self._lost_at, None
            self._host.resumed(away_s)
            self._services.metrics.migrated("moved", away_s)
        if not self.unheard:
            self._heard.set()

    def cancel(self) -> None:
        """Its request has ended otherwise."""
        if self._task is not None:
            self._task.cancel()
        self.unheard.clear()
        if self._lost_at is not None:
            self._lost_at = None
            self._services.metrics.migrated("left")

    async def over(self) -> None:
        """Waits until nothing is under way and there is an engine. Raises ApiError after as long as that may take."""
        try:
            async with asyncio.timeout(self._services.settings.migration_wait_s):
                await self._settled.wait()
                await self._services.engine.available()
        except TimeoutError:
            raise self._no_engine() from None

    def _no_engine(self) -> ApiError:
        return faults.engine_unavailable(self._services, "The engine stopped, and none took the request over in time.")

    # the task

    async def _move(self, death: Death) -> None:
        try:
            async with asyncio.timeout(self._services.settings.migration_wait_s):
                with suppress(TimeoutError):
                    async with asyncio.timeout(EXPLAIN_S):
                        await death.explained.wait()
                if (error := self._verdict()) is not None:
                    return self._give_up("poison", error)
                while self._lost:
                    async with self._services.returning if self._is_suspect else nullcontext():
                        await self._take_turn()
                self._settled.set()
        except TimeoutError:
            self._give_up("failed", self._no_engine())
        except Rejected as refusal:
            self._give_up("failed", faults.rejected(self._services, refusal))
        except Exception:  # whoever reads must not wait for ever
            _log.exception("request %s: it could not be submitted again", self._exchange.request_id)
            self._give_up("failed", faults.internal(self._exchange.request_id))

    @property
    def _is_suspect(self) -> bool:
        return len(self._deaths) > 1 or not self._deaths[0].from_outside

    def _verdict(self) -> ApiError | None:
        """A process that was killed among many requests is no evidence against each of them."""
        blamed = sum(not death.from_outside or death.num_requests == 1 for death in self._deaths)
        if blamed >= MAX_BLAMED or len(self._deaths) >= MAX_IN_A_ROW or self._num_moves > MAX_MOVES:
            return faults.poisoned(len(self._deaths) if blamed >= MAX_BLAMED else self._num_moves)
        return None

    async def _take_turn(self) -> None:
        await self._services.engine.available()
        requests = self._host.again(self._lost)
        self._lost = {seq_id for request in requests for seq_id in request.seq_ids}  # the others have ended
        try:
            for request in requests:
                await self._submit(request)
        except EngineUnavailable:
            return  # it is gone again
        except Rejected as refusal:
            if refusal.code != "queue_full":
                raise
            await asyncio.sleep(RETRY_S)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(TURN_S):
                await self._heard.wait()

    async def _submit(self, request: Submit) -> None:
        """Tokens may come before the client's `submit` has a turn to return."""
        self._heard.clear()
        self.unheard.update(request.seq_ids)
        self._lost.difference_update(request.seq_ids)
        try:
            await self._host.submit(request)
        except BaseException:
            self.unheard.difference_update(request.seq_ids)
            self._lost.update(request.seq_ids)
            raise

    def _give_up(self, outcome: str, error: ApiError) -> None:
        self._services.metrics.migrated(outcome)
        self._lost_at = None
        self._host.stop("failed", error)
