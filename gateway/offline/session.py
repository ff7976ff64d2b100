"""A program's requests in the engine: each prepared and read as the server does it, and no more at a time than fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import count

from gateway.answers.choice import Delta
from gateway.answers.generation import Generation
from gateway.answers.mailbox import Mailbox
from gateway.answers.parts import Text
from gateway.assembly import UNSTALLED_S, engine_for, http_settings
from gateway.config import Config
from gateway.engines.replicas import Replicas
from gateway.engines.vocabulary import vocabulary_of
from gateway.errors import ApiError
from gateway.http.drain import Drain
from gateway.http.exchange import Exchange
from gateway.metrics import Metrics
from gateway.model.served import ServedModel
from gateway.offline.asks import Ask
from gateway.offline.errors import LLMError, closed
from gateway.offline.progress import Bar, Tally, bar_of
from gateway.offline.results import Result, result_of
from gateway.offline.room import Room
from gateway.requests import prepare
from gateway.requests.convert import Job
from gateway.requests.prompts import encode_prompt
from gateway.services import HttpSettings, Services
from gateway.timeline.laps import Laps, timed_by
from gateway.timeline.store import timings_of
from gateway.wires.chat import answer_parts

TICK_S = 0.2
RETRY_S = 1.0
POLL_S = 0.05
RESTART_S = 120.0
SUBMIT_S = 60.0
FATAL = frozenset({"engine_unavailable", "closed"})  # what comes after would fail the same way


class Session:
    """Used on one event loop. Whoever has one calls close() in the end."""

    def __init__(self, services: Services, replicas: Replicas, room: Room) -> None:
        self._services = services
        self._replicas = replicas
        self._room = room
        self._workers = prepare.Workers(services.settings.tokenize_threads, services.settings.inline_chars)
        self._numbers = count(1)
        self._closed = False

    async def close(self) -> None:
        """What still runs ends with an error. Safe to call again."""
        self._closed = True
        self._workers.close()
        await self._replicas.close()

    def kill(self) -> None:
        self._replicas.kill()

    # text and ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            return encode_prompt(text, self._services.model, add_special_tokens)
        except ApiError as error:
            raise Ask("prompt", text, {}).named(error) from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self._services.model.tokenizer.decode(list(ids), skip_special=skip_special_tokens)

    @property
    def model_name(self) -> str:
        return self._services.model.name

    # whole answers

    async def run(self, ask: Ask) -> Result:
        """Raises LLMError."""
        return await self._run(ask, Tally(1))

    async def run_all(self, asks: Sequence[Ask], progress: bool | None) -> list[Result]:
        """In order. Raises the first LLMError when all have ended."""
        tally = Tally(len(asks))
        ended: list[Result | LLMError | None] = [None] * len(asks)
        todo = iter(enumerate(asks))
        async with _shown(bar_of(tally, progress)), asyncio.TaskGroup() as group:
            for _ in range(min(len(asks), self._room.max_seqs)):
                group.create_task(self._work(todo, ended, tally))
        return _settled(ended)

    async def _work(self, todo: Iterator[tuple[int, Ask]], ended: list[Result | LLMError | None], tally: Tally) -> None:
        """One after another of those that nobody has begun."""
        for place, ask in todo:
            try:
                ended[place] = await self._run(ask, tally)
            except LLMError as error:
                ended[place] = error
                if error.code in FATAL or not ask.spares_others(error):
                    for left, _ in todo:
                        ended[left] = error

    async def _run(self, ask: Ask, tally: Tally) -> Result:
        exchange = self._exchange()
        key = next(self._numbers)
        tally.open[key] = exchange
        try:
            job = await self._job(ask, exchange)
            async with self._started(job, exchange) as generation:
                await generation.finished()
                return self._result(ask, job, generation, await generation.mailbox.take(), exchange)
        except ApiError as error:
            raise ask.named(error) from None
        finally:
            tally.end(key)

    # streams

    async def stream(self, ask: Ask, result: list[Result]) -> AsyncGenerator[str]:
        """Pieces of text; at their end the result is put into `result`. Raises LLMError."""
        exchange, whole = self._exchange(), Mailbox()
        try:
            job = await self._job(ask, exchange)
            async with self._started(job, exchange) as generation:
                finish = None
                while finish is None:
                    for delta in await generation.mailbox.take():
                        whole.put(delta)
                        finish = delta.finish
                        text = "".join(part.text for part in answer_parts(delta) if isinstance(part, Text))
                        if text:
                            yield text
                result.append(self._result(ask, job, generation, whole.take_now(), exchange))
        except ApiError as error:
            raise ask.named(error) from None

    # both

    def _exchange(self) -> Exchange:
        laps = Laps(self._services.clock)
        return Exchange(f"offline-{next(self._numbers)}", "", laps.began, "offline", laps=laps)

    async def _job(self, ask: Ask, exchange: Exchange) -> Job:
        if self._closed:
            raise closed()
        services, laps = self._services, exchange.laps
        await self._wait_for_engine()
        body = ask.body(services.model.name)
        laps.enter("turn")
        await services.turnstile.enter()
        laps.enter("prepare")
        preparation = prepare.prepare_chat if ask.source == "messages" else prepare.prepare_completion
        with timed_by(laps):
            prepared = await self._workers.run(prepare.cost(body), partial(preparation, body, services))
        prepare.check_strict(prepared.ignored, services.settings)
        return prepared.job

    async def _wait_for_engine(self) -> None:
        """After its death another one starts. Where that takes too long, what is asked for fails."""
        clock, engine = self._services.clock, self._services.engine
        until = clock() + RESTART_S
        while engine.ready is None and not self._closed and clock() < until:
            await asyncio.sleep(POLL_S)

    @asynccontextmanager
    async def _started(self, job: Job, exchange: Exchange) -> AsyncIterator[Generation]:
        """While it is held, the engine works on it."""
        exchange.laps.enter("turn")
        async with self._room.held(len(job.seeds), job.n * len(job.prompts[0])):
            generation = await self._accepted(job, exchange)
            try:
                yield generation
            finally:
                generation.close()
                exchange.laps.end()

    async def _accepted(self, job: Job, exchange: Exchange) -> Generation:
        """Preempted sequences, and grammars that are being compiled, may fill the queue of the engine all the same."""
        while True:
            generation = Generation(self._services, job, exchange, None)
            try:
                await generation.start()
                return generation
            except BaseException as error:
                generation.close()
                is_full = isinstance(error, ApiError) and error.code == "queue_full"
                if not is_full or self._room.num_inside == 1:
                    raise
            await self._room.change(RETRY_S)

    def _result(
        self, ask: Ask, job: Job, generation: Generation, deltas: Sequence[Delta], exchange: Exchange
    ) -> Result:
        exchange.laps.end()
        prompt = ask.given if isinstance(ask.given, str) else None
        told = (generation.usage(), timings_of(exchange.laps))
        return result_of(job, prompt, deltas, *told, self._services.model.tokenizer)


def session_of(config: Config, model: ServedModel, metrics: Metrics, replicas: Replicas) -> Session:
    replicas.client.teach(vocabulary_of(model))
    services = Services(engine_for(model, replicas.client, config), model, Drain(), metrics, settings_of(config))
    return Session(services, replicas, Room(config.max_waiting, max(1, config.max_waiting_tokens // 2)))


def settings_of(config: Config) -> HttpSettings:
    """Nobody is refused for being slow, and what would have no effect is an error."""
    return replace(http_settings(config), strict=True, submit_timeout_s=SUBMIT_S, stall_timeout_s=UNSTALLED_S)


@asynccontextmanager
async def _shown(bar: Bar | None) -> AsyncIterator[None]:
    if bar is None:
        yield
        return
    with bar:
        ticking = asyncio.create_task(_tick(bar))
        try:
            yield
        finally:
            ticking.cancel()


async def _tick(bar: Bar) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        bar.show()


def _settled(ended: Sequence[Result | LLMError | None]) -> list[Result]:
    results = [each for each in ended if each is not None]
    assert len(results) == len(ended), "a prompt was left out"
    for each in results:
        if isinstance(each, LLMError):
            each.results = results
            raise each
    return [each for each in results if not isinstance(each, LLMError)]
