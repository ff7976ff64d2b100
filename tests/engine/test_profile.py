"""Profiles of the step loop with a tracer that only notes; then torch's, around a few of its operations."""

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import profile as profiles
from engine.loop import StepsFail
from engine.profile import Profiles
from engine.server import Gone
from engine.trace import TorchTracer
from scheduler.protocol import DropProfile, Output, Profile, Profiled
from tests.engine.test_loop import World

DEADLINE_S = 30.0
TRACE = b'{"traceEvents": []}\n'


class NotingTracer:
    """Raises at the word that `broken` is."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.broken = ""
        self.trace = TRACE
        self.may_write = threading.Event()
        self.may_write.set()

    def _note(self, word: str) -> None:
        self.noted.append(word)
        if self.broken == word:
            raise RuntimeError(f"no {word}\nhere")

    def start(self) -> None:
        self._note("start")

    def begin_step(self, number: int) -> None:
        self._note(f"begin {number}")

    def end_step(self) -> None:
        self._note("end")

    def stop(self) -> "NotingTracer":
        self._note("stop")
        return self

    def write(self, path: Path) -> None:
        assert self.may_write.wait(DEADLINE_S)
        if self.broken == "write":
            raise OSError("disk full")
        path.write_bytes(self.trace)


class ProfiledWorld:
    """A world whose first gateway may ask for profiles."""

    def __init__(self, folder: Path, tracer: NotingTracer | None) -> None:
        self.world = World()
        self.tracer = tracer
        self.path = folder / "trace.json.gz"
        self.folder = folder
        self.answered = threading.Semaphore(0)
        self.profiles = Profiles(tracer, self._send, lambda: self.world.now)
        self.world.loop._profiles = self.profiles

    def _send(self, connection: int, message: Any) -> None:
        self.world.server.send(connection, message)
        self.answered.release()

    def ask(self, steps: int, *, profile_id: int = 7, connection: int = 1, max_bytes: int = 1 << 20) -> None:
        asked: Any = Profile(profile_id, steps, 5.0, str(self.path), max_bytes)
        self.world.server.inbox.append((connection, asked))

    def answers(self, count: int = 1) -> list[tuple[int, Profiled]]:
        for _ in range(count):
            assert self.answered.acquire(timeout=DEADLINE_S)
        return [(to, each) for to, each in self.world.server.sent if isinstance(each, Profiled)]

    def outputs(self) -> list[Output]:
        return self.world.server.outputs(1)

    @property
    def is_clean(self) -> bool:
        return list(self.folder.iterdir()) == []


@pytest.fixture
def profiled(tmp_path: Path) -> ProfiledWorld:
    return ProfiledWorld(tmp_path, NotingTracer())


def undisturbed() -> list[Output]:
    world = World()
    world.submit(1)
    world.turn(4)
    return world.server.outputs(1)


def test_as_many_steps_as_were_asked_for(profiled: ProfiledWorld) -> None:
    profiled.ask(2)
    profiled.world.submit(1)
    profiled.world.turn(4)
    [(connection, answer)] = profiled.answers()
    assert (connection, answer) == (1, Profiled(7, "done", 2, profiled.path.stat().st_size))
    assert gzip.decompress(profiled.path.read_bytes()) == TRACE
    assert profiled.tracer is not None
    assert profiled.tracer.noted == ["start", "begin 1", "end", "begin 2", "end", "stop"]
    assert profiled.outputs() == undisturbed()
    assert [path.name for path in profiled.folder.iterdir()] == [profiled.path.name]


def test_what_there_was_when_the_time_is_up(profiled: ProfiledWorld) -> None:
    profiled.ask(200)
    profiled.world.submit(1)
    profiled.world.turn(3)
    profiled.world.now += 6
    profiled.world.turn()
    assert profiled.answers()[0][1].num_steps == 3


def test_without_any_step_nothing(profiled: ProfiledWorld) -> None:
    profiled.ask(200)
    profiled.world.turn(2)
    profiled.world.now += 6
    profiled.world.turn()
    assert profiled.answers() == [(1, Profiled(7, "nothing"))]
    assert profiled.tracer is not None and profiled.tracer.noted[-1] == "stop" and profiled.is_clean


def test_one_at_a_time_until_the_file_is_written(profiled: ProfiledWorld) -> None:
    assert profiled.tracer is not None
    profiled.tracer.may_write.clear()
    profiled.ask(1)
    profiled.ask(1, profile_id=8, connection=2)
    profiled.world.submit(1)
    profiled.world.turn()
    profiled.ask(1, profile_id=9)
    profiled.world.turn()
    assert profiled.answers(2) == [(2, Profiled(8, "busy")), (1, Profiled(9, "busy"))]
    profiled.tracer.may_write.set()
    assert profiled.answers()[-1][1].outcome == "done"
    profiled.path.unlink()
    profiled.ask(1, profile_id=10)
    profiled.world.turn()
    assert profiled.answers()[-1][1].outcome == "done"


def test_where_it_is_off_it_says_so(tmp_path: Path) -> None:
    profiled = ProfiledWorld(tmp_path, None)
    profiled.ask(1)
    profiled.world.submit(1)
    profiled.world.turn(4)
    assert profiled.answers() == [(1, Profiled(7, "off"))]
    assert profiled.outputs() == undisturbed()


@pytest.mark.parametrize("broken", ["start", "begin 1", "begin 2", "end", "stop", "write"])
def test_a_tracer_that_fails_hurts_no_request(profiled: ProfiledWorld, broken: str) -> None:
    tracer = profiled.tracer
    assert tracer is not None
    tracer.broken = broken
    profiled.ask(2)
    profiled.world.submit(1)
    profiled.world.turn(4)
    [(_, answer)] = profiled.answers()
    assert answer.outcome == "failed" and answer.message and "\n" not in answer.message
    assert "stop" in tracer.noted and profiled.is_clean
    assert profiled.outputs() == undisturbed()
    tracer.broken = ""
    profiled.ask(1, profile_id=8)
    profiled.world.submit(2)
    profiled.world.turn()
    assert profiled.answers()[-1][1].outcome == "done"


@pytest.mark.parametrize("size", ["compressed", "raw"])
def test_a_trace_over_the_limit_is_refused(profiled: ProfiledWorld, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == "raw":
        monkeypatch.setattr(profiles, "MAX_EXPANSION", 1)
    profiled.ask(1, max_bytes=18)
    profiled.world.submit(1)
    profiled.world.turn()
    assert profiled.answers() == [(1, Profiled(7, "too_large", 1))]
    assert profiled.is_clean


def test_half_a_trace_is_none(profiled: ProfiledWorld) -> None:
    assert profiled.tracer is not None
    profiled.tracer.trace = TRACE[:-4]
    profiled.ask(1)
    profiled.world.submit(1)
    profiled.world.turn()
    assert "incomplete" in profiled.answers()[0][1].message
    assert profiled.is_clean


@pytest.mark.parametrize("message", [Gone(), DropProfile(7)])
@pytest.mark.parametrize("writing", [False, True])
def test_who_leaves_takes_the_profile_along(profiled: ProfiledWorld, message: Any, writing: bool) -> None:
    tracer = profiled.tracer
    assert tracer is not None
    tracer.may_write.clear()
    profiled.ask(1 if writing else 50)
    profiled.world.submit(1, connection=2)
    profiled.world.turn()
    for other in ((2, DropProfile(7)), (1, DropProfile(99))):
        profiled.world.server.inbox.append(other)  # type: ignore[arg-type]
    profiled.world.server.inbox.append((1, message))
    profiled.world.turn(3)
    writer = profiled.profiles._writer
    tracer.may_write.set()
    if writer is not None:
        writer.join(DEADLINE_S)
    assert profiled.answers(0) == [] and profiled.is_clean
    assert tracer.noted.count("stop") == 1
    assert [output.finish for output in profiled.world.server.outputs(2)] == [None, None, "length"]
    profiled.ask(1, profile_id=8)
    profiled.world.submit(2)
    profiled.world.turn()
    assert profiled.answers()[-1][1] == Profiled(8, "done", 1, profiled.path.stat().st_size)


def test_a_gateway_that_goes_during_a_step(profiled: ProfiledWorld) -> None:
    profiled.ask(1)
    profiled.world.submit(1)
    profiled.world.server.during_step = [(1, Gone())]
    profiled.world.turn(2)
    assert profiled.answers(0) == [] and profiled.is_clean


def test_an_engine_that_is_stopped_drops_it(profiled: ProfiledWorld) -> None:
    profiled.ask(50)
    profiled.world.submit(1)
    profiled.world.runner.during = profiled.world.loop.stop
    profiled.world.loop.run()
    assert profiled.tracer is not None and profiled.tracer.noted[-1] == "stop"
    assert profiled.answers(0) == [] and profiled.is_clean


def test_an_engine_that_breaks_down_drops_it(profiled: ProfiledWorld) -> None:
    profiled.ask(50)
    for seq_id in range(1, 7):  # for three steps and more
        profiled.world.submit(seq_id, prompt=[1] * 30)
    profiled.world.runner.broken = 9
    with pytest.raises(StepsFail):
        profiled.world.loop.run()
    assert profiled.tracer is not None and profiled.tracer.noted[-1] == "stop"
    assert profiled.answers(0) == [] and profiled.is_clean


def test_an_engine_that_ends_leaves_no_half_file(profiled: ProfiledWorld) -> None:
    assert profiled.tracer is not None
    profiled.tracer.may_write.clear()
    profiled.ask(1)
    profiled.world.submit(1)
    profiled.world.turn()
    threading.Timer(0.01, profiled.tracer.may_write.set).start()
    profiled.profiles.close()
    assert profiled.profiles._writer is not None and not profiled.profiles._writer.is_alive()
    assert profiled.answers(0) == [] and profiled.is_clean


def test_torchs_trace_has_the_steps_and_no_numbers_of_theirs(tmp_path: Path) -> None:
    tracer = TorchTracer()
    tracer.warm_up()
    tracer.start()
    weights = torch.ones(4, 4)
    for number in (1, 2):
        tracer.begin_step(number)
        (weights @ weights)[1, 3].fill_(31337)
        tracer.end_step()
    tracer.stop().write(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    spans = {event["name"]: event for event in trace["traceEvents"] if event.get("ph") == "X"}
    assert {"step 1", "step 2", "aten::mm", "aten::fill_"} <= set(spans)
    given = {key for event in trace["traceEvents"] for key in event.get("args", {})}
    assert not {key for key in given if "Input" in key or "Concrete" in key}
    assert "31337" not in json.dumps([event.get("args") for event in trace["traceEvents"]])
    with pytest.raises(RuntimeError):
        tracer.stop()
