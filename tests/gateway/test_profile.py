"""POST /debug/profile: over an engine that only makes a file, and over the socket."""

import asyncio
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.engines.client import EngineUnavailable
from gateway.engines.profiles import MAX_TRACE_BYTES, NoProfile, Profiler
from gateway.http.app import create_app
from gateway.http.keys import Keys
from gateway.services import Services
from scheduler.protocol import Profile, Profiled
from tests.fixtures.engines import started
from tests.fixtures.fake_engine import Order
from tests.fixtures.fakes import DEADLINE_S, Connection, FakeEngine, client_of, toy_services

PATH = "/debug/profile"
TRACE = gzip.compress(json.dumps({"traceEvents": [{"name": str(number)} for number in range(200_000)]}).encode())


class Profiling:
    """An engine that makes the file and answers once it may."""

    def __init__(self, answer: str = "done", message: str = "") -> None:
        self.outcome = answer
        self.message = message
        self.asked: list[Profile] = []
        self.limits_s: list[float] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.was_asked = asyncio.Event()
        self.num_dropped = 0
        self.failure: Exception | None = None
        self.makes_file = True

    def new_ids(self, count: int) -> list[int]:
        return [5]

    async def profile(self, request: Profile, limit_s: float) -> Profiled:
        self.asked.append(request)
        self.limits_s.append(limit_s)
        self.was_asked.set()
        if self.makes_file:
            Path(request.path).write_bytes(TRACE)
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.num_dropped += 1
            raise
        if self.failure is not None:
            raise self.failure
        return Profiled(request.profile_id, self.outcome, 3, len(TRACE), self.message)  # type: ignore[arg-type]


@pytest.fixture
def engine() -> Profiling:
    return Profiling()


@pytest.fixture
def services(engine: Profiling, tmp_path: Path) -> Services:
    return replace(toy_services(send_timeout_s=DEADLINE_S), profiler=Profiler(engine, tmp_path))


def is_clean(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def error_of(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return answer.status_code, error["code"]


async def test_a_trace_comes_compressed_and_its_file_is_gone(
    client: httpx.AsyncClient, engine: Profiling, tmp_path: Path
) -> None:
    answer = await client.post(PATH, params={"steps": 7, "timeout_s": "2.5"})
    assert (answer.status_code, answer.headers["x-headrace-steps"]) == (200, "3")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-length"] == str(len(TRACE))
    assert len(answer.json()["traceEvents"]) == 200_000
    [asked] = engine.asked
    assert (asked.steps, asked.timeout_s, asked.max_bytes) == (7, 2.5, MAX_TRACE_BYTES)
    assert Path(asked.path).is_relative_to(tmp_path) and is_clean(tmp_path)
    assert engine.limits_s[0] > 2.5


async def test_twenty_steps_and_a_minute_unless_asked_otherwise(client: httpx.AsyncClient, engine: Profiling) -> None:
    await client.post(PATH)
    assert (engine.asked[0].steps, engine.asked[0].timeout_s) == (20, 60)


@pytest.mark.parametrize(
    "query",
    [
        *("steps=0", "steps=201", "steps=-1", "steps=1.5", "steps=", "steps=%D9%A1", "steps=1e2", "steps=99999999999"),
        *("timeout_s=0", "timeout_s=-1", "timeout_s=600.1", "timeout_s=nan", "timeout_s=inf", "timeout_s="),
    ],
)
async def test_out_of_bounds(client: httpx.AsyncClient, engine: Profiling, query: str) -> None:
    answer = await client.post(f"{PATH}?{query}")
    assert error_of(answer) == (400, "value_out_of_range")
    assert answer.json()["error"]["param"] == query.partition("=")[0]
    assert engine.asked == []


async def test_off_unless_asked_for() -> None:
    async with client_of(toy_services()) as client:
        answer = await client.post(PATH)
    assert error_of(answer) == (403, "profiling_off") and "--debug-profile" in answer.json()["error"]["message"]


async def test_with_keys_it_needs_one(services: Services) -> None:
    async with client_of(replace(services, keys=Keys("sk-one", None, services.clock))) as client:
        refused = await client.post(PATH)
        answer = await client.post(PATH, headers={"authorization": "Bearer sk-one"})
    assert error_of(refused) == (401, "invalid_api_key")
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("outcome", "message", "status", "code"),
    [
        ("nothing", "", 504, "no_steps"),
        ("busy", "", 409, "profile_under_way"),
        ("off", "", 500, "profile_failed"),
        ("too_large", "", 400, "profile_too_large"),
        ("failed", "OSError: disk full", 500, "profile_failed"),
    ],
)
async def test_what_the_engine_says(
    client: httpx.AsyncClient, engine: Profiling, tmp_path: Path, outcome: str, message: str, status: int, code: str
) -> None:
    engine.outcome, engine.message = outcome, message
    answer = await client.post(PATH)
    assert error_of(answer) == (status, code)
    assert message in answer.json()["error"]["message"] and is_clean(tmp_path)
    engine.outcome = "done"
    assert (await client.post(PATH)).status_code == 200


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(TimeoutError(), 504, "stalled"), (EngineUnavailable("The engine stopped."), 503, "engine_unavailable")],
)
async def test_an_engine_that_does_not_say_anything(
    client: httpx.AsyncClient, engine: Profiling, tmp_path: Path, failure: Exception, status: int, code: str
) -> None:
    engine.failure = failure
    assert error_of(await client.post(PATH)) == (status, code)
    assert is_clean(tmp_path)


async def test_a_file_that_is_not_there(client: httpx.AsyncClient, engine: Profiling, tmp_path: Path) -> None:
    engine.makes_file = False
    assert error_of(await client.post(PATH)) == (500, "profile_failed")
    assert is_clean(tmp_path)


async def test_without_an_engine() -> None:
    services = replace(toy_services(FakeEngine(ready=None)), profiler=Profiler(Profiling(), Path("/nowhere")))
    async with client_of(services) as client:
        assert error_of(await client.post(PATH)) == (503, "engine_unavailable")


def ask(services: Services) -> Connection:
    connection = Connection(create_app(services), "POST", PATH)
    connection.send_body(b"")
    return connection


async def test_one_at_a_time_until_it_is_read(services: Services, engine: Profiling) -> None:
    engine.may_answer.clear()
    first = ask(services)
    await engine.was_asked.wait()
    for _ in range(2):  # while it is taken, and while it is read
        second = ask(services)
        await second.end()
        assert second.status == 409
        first.reading.clear()
        engine.may_answer.set()
    first.reading.set()
    await first.end()
    assert (first.status, first.body) == (200, TRACE)
    third = ask(services)
    await third.end()
    assert third.status == 200 and len(engine.asked) == 2


async def test_who_leaves_drops_it(services: Services, engine: Profiling, tmp_path: Path) -> None:
    engine.may_answer.clear()
    connection = ask(services)
    await engine.was_asked.wait()
    connection.leave()
    await connection.end()
    assert engine.num_dropped == 1 and is_clean(tmp_path)
    engine.may_answer.set()
    again = ask(services)
    await again.end()
    assert again.status == 200


async def test_who_leaves_while_it_is_sent(services: Services, engine: Profiling, tmp_path: Path) -> None:
    connection = ask(services)
    await connection.until(lambda c: len(c.sent) > 1)
    connection.reading.clear()
    connection.leave()
    await connection.end()
    assert len(connection.body) < len(TRACE) and is_clean(tmp_path)
    again = ask(services)
    await again.end()
    assert again.body == TRACE


async def test_a_reader_that_takes_nothing(services: Services, tmp_path: Path) -> None:
    services = replace(services, settings=replace(services.settings, send_timeout_s=0.001))
    connection = ask(services)
    await connection.until(lambda c: bool(c.sent))
    connection.reading.clear()
    await connection.end()
    assert len(connection.body) < len(TRACE) and is_clean(tmp_path)


async def test_a_drain_whose_time_is_up_ends_it(services: Services, engine: Profiling, tmp_path: Path) -> None:
    engine.may_answer.clear()
    connection = ask(services)
    await engine.was_asked.wait()
    await services.drain.run(0.001, DEADLINE_S)
    await connection.end()
    assert connection.status == 503 and json.loads(connection.body)["error"]["code"] == "draining"
    assert engine.num_dropped == 1 and is_clean(tmp_path)


# over the socket, to a process


async def test_a_trace_over_the_socket() -> None:
    async with started() as world:
        async with Profiler(world.engine, world.folder).trace(1, 5) as trace:
            assert json.loads(gzip.decompress(trace.file.read())) == {"traceEvents": []}
        assert [path.suffix for path in world.folder.iterdir() if not path.is_symlink()] == [".sock"]
    assert not world.folder.exists()


async def test_one_that_takes_too_long_is_dropped() -> None:
    async with started() as world:
        with pytest.raises(TimeoutError):
            await world.engine.profile(Profile(77, 2, 5.0, str(world.folder / "trace"), 1000), 0.01)
        late = await world.ask(Order.LATE)
        await world.ask(3)
        await late.finished()
    assert late.tokens == [1]  # was dropped


async def test_an_engine_that_dies_meanwhile() -> None:
    async with started() as world:
        with pytest.raises(EngineUnavailable):
            async with Profiler(world.engine, world.folder).trace(3, 5):
                raise AssertionError
        assert [path.suffix for path in world.folder.iterdir() if not path.is_symlink()] == [".sock"]
        await world.supervisor.close()
        with pytest.raises(EngineUnavailable):
            await world.engine.profile(Profile(78, 1, 5.0, "/nowhere", 1000), 5.0)


async def test_a_profiler_that_is_busy_says_so(engine: Profiling, tmp_path: Path) -> None:
    profiler: Any = Profiler(engine, tmp_path)
    async with profiler.trace(1, 1):
        with pytest.raises(NoProfile) as refused:
            async with profiler.trace(1, 1):
                raise AssertionError
    assert refused.value.outcome == "busy"
