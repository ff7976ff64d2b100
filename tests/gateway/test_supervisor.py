"""Starting, watching, restarting and stopping engines that are real processes."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.engines import process as engine_process
from gateway.engines import supervisor
from gateway.engines.client import EngineUnavailable
from gateway.engines.process import EngineProcess
from gateway.engines.socket import EngineFailed, SocketEngine
from gateway.engines.supervisor import MAX_SOCKET_PATH, Backoff, EngineSetup, Supervisor
from scheduler.protocol import EngineConfig, Progress, Ready, Vocabulary
from tests.fixtures.engines import PATIENCE_S, RecordingObserver, World, fake_setup, started, world
from tests.fixtures.fake_engine import Order


async def die(each: World) -> None:
    """Makes the engine end while it answers, and waits until the supervisor thinks about a restart."""
    num_slept = len(each.time.slept)
    sink = await each.ask(Order.DIE)
    await sink.failed()
    await each.time.changes.until(lambda: len(each.time.slept) > num_slept)


async def up_again(each: World) -> None:
    await each.observer.changes.until(lambda: each.engine.ready is not None)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_start_tells_its_progress_and_then_what_it_is() -> None:
    async with world() as each:
        await each.start()
        assert each.engine.ready is not None
        assert each.engine.ready.architecture == "Echo"
    assert each.progress == [Progress("weights", 1, 2), Progress("weights", 2, 2)]
    assert each.observer.ups == [True, False]


async def test_the_configuration_reaches_the_engine_by_its_standard_input() -> None:
    async with started() as each:
        assert each.engine.ready is not None
        assert each.engine.ready.max_seqs == 7


async def test_a_crash_at_the_first_start_is_final_and_quotes_the_last_line() -> None:
    async with world("crash", "ImportError: no torch") as each:
        with pytest.raises(EngineFailed, match="the engine ended with code 5: ImportError: no torch"):
            await each.start()
    assert each.time.slept == []


async def test_a_fatal_at_the_first_start_is_final_in_the_engines_own_words() -> None:
    async with world("fatal", "model", "no tensor named lm_head") as each:
        with pytest.raises(EngineFailed) as failed:
            await each.start()
    assert (failed.value.kind, failed.value.message) == ("model", "no tensor named lm_head")


async def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    setup = EngineSetup(EngineConfig(model="", format="dummy", socket_path=""), os.environ, ("/nowhere/engine",))
    observer = RecordingObserver()
    keeper = Supervisor(setup, SocketEngine(observer), observer, tmp_path)
    with pytest.raises(EngineFailed, match="cannot start the engine /nowhere/engine: No such file"):
        await keeper.start(print)
    await keeper.close()


async def test_a_dead_engine_is_restarted_and_serves_again() -> None:
    async with started() as each:
        await die(each)
        await up_again(each)
        sink = await each.ask(1, 2)
        await sink.finished()
        assert sink.tokens == [1, 2]
        assert each.observer.num_restarts == 1
        assert each.observer.ups == [True, False, True]
        assert len(each.progress) == 2  # bars are for the first start only


async def test_the_cause_of_a_death_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with started() as each:
        await die(each)
    assert "the engine ended with code 3: RuntimeError: told to die" in caplog.messages


@pytest.mark.parametrize("step", ["connect", "lead_to"])
async def test_a_restart_for_which_the_machine_lacks_something_is_tried_again(
    step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with started() as each:
        lacking = [OSError(errno.EMFILE, "Too many open files")] * 2
        real = getattr(EngineProcess, step)

        def lacks(*args: Any) -> Any:
            if lacking:
                raise lacking.pop()
            return real(*args)

        monkeypatch.setattr(EngineProcess, step, lacks)
        await die(each)
        await up_again(each)
        assert len(each.time.slept) == 3
    assert "the engine cannot be reached: [Errno 24] Too many open files" in caplog.messages


async def test_failing_restarts_wait_twice_as_long_each_up_to_a_limit(tmp_path: Path) -> None:
    async with world("crash-after", str(tmp_path / "mark"), backoff=Backoff(first_s=1, limit_s=3)) as each:
        await each.start()
        each.time.max_sleeps = 4
        await die(each)
        await each.time.changes.until(lambda: len(each.time.slept) == 4)
        assert each.time.slept == [1, 2, 3, 3]
        with pytest.raises(EngineUnavailable) as refused:
            await each.ask(1)
        assert refused.value.retry_after_s == 3


async def test_a_restart_that_does_not_become_ready_is_ended_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first start, which people watch, has no limit; nor has what comes after an engine is ready."""
    monkeypatch.setattr(supervisor, "START_S", 0.01)
    async with world("silent-after", str(tmp_path / "mark")) as each:
        await each.start()
        each.time.max_sleeps = 3
        await die(each)
        await each.time.changes.until(lambda: len(each.time.slept) == 3)
        assert each.supervisor.pid is None
    assert caplog.messages.count("the engine was not ready after 0.01 s") == 2


async def test_one_that_is_ready_after_a_restart_has_no_limit_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[asyncio.Timeout] = []
    real = Supervisor._note_ready

    def note(self: Supervisor, limit: asyncio.Timeout, ready: Ready) -> None:
        assert (limit.when() is None) == (not limits)
        limits.append(limit)
        real(self, limit, ready)

    monkeypatch.setattr(Supervisor, "_note_ready", note)
    async with started() as each:
        await die(each)
        await up_again(each)
        assert [limit.when() for limit in limits] == [None, None]


@pytest.mark.parametrize(("healthy_for_s", "second_delay_s"), [(59, 2), (60, 1)])
async def test_a_healthy_minute_forgives_earlier_failures(healthy_for_s: float, second_delay_s: float) -> None:
    async with started(backoff=Backoff(first_s=1)) as each:
        await die(each)
        await up_again(each)
        each.time.now += healthy_for_s
        await die(each)
    assert each.time.slept == [1, second_delay_s]


async def test_a_halted_engine_stays_away_until_it_is_launched_with_whatever_it_is_given() -> None:
    async with started() as each:
        sink = await each.ask(Order.HANG)
        pid = each.supervisor.pid
        assert pid is not None
        await each.supervisor.halt()
        assert (each.engine.said, each.supervisor.pid, each.supervisor.is_halted) == (None, None, True)
        assert not is_alive(pid)
        (death,) = sink.failures
        assert death.explained.is_set() and death.from_outside
        ready = await each.supervisor.launch(fake_setup("serve"), each.progress.append, PATIENCE_S)
        assert each.engine.ready is ready
        sink = await each.ask(1, 2)
        await sink.finished()
        assert (each.time.slept, each.observer.num_restarts, each.supervisor.num_restarts) == ([], 0, 0)
        await die(each)
        await up_again(each)
        assert each.supervisor.num_restarts == 1


async def test_a_launch_that_fails_leaves_nothing_running_and_the_next_one_may_do_better() -> None:
    async with started() as each:
        await each.supervisor.halt()
        for how, message in (
            (("crash", "no room"), "ended with code 5: no room"),
            (("silent",), "not ready after 0.3 s"),
        ):
            limit_s = PATIENCE_S if how[0] == "crash" else 0.3
            with pytest.raises(EngineFailed, match=message):
                await each.supervisor.launch(fake_setup(*how), each.progress.append, limit_s)
            assert (each.supervisor.is_halted, each.supervisor.pid) == (True, None)
        assert each.time.slept == []
        each.supervisor.keep_trying(fake_setup("serve"))
        await up_again(each)


async def test_a_halt_while_an_engine_is_about_to_be_started_again_holds(tmp_path: Path) -> None:
    async with world("crash-after", str(tmp_path / "mark")) as each:
        await each.start()
        each.time.max_sleeps = 1
        await die(each)
        await each.supervisor.halt()
        assert each.supervisor.is_halted and each.observer.num_restarts == 0


async def test_close_ends_the_process() -> None:
    async with started() as each:
        process = each.supervisor._process
        assert process is not None
        await each.supervisor.close()
        assert process._process.returncode is not None
        await each.supervisor.close()


async def test_an_engine_deaf_to_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "STOP_S", 0.01)
    async with started("stubborn") as each:
        process = each.supervisor._process
        assert process is not None
        await each.supervisor.close()
        assert process._process.returncode == -9


async def test_close_fails_what_is_open() -> None:
    async with started() as each:
        sink = await each.ask(Order.HANG)
        await each.supervisor.close()
    assert len(sink.failures) == 1


async def test_every_engine_is_taught_the_vocabulary_before_it_is_asked() -> None:
    async with started() as each:
        untaught = await each.ask(Order.SPELL)
        each.engine.teach(Vocabulary([b"a", b"b", b"<end>"], [2], [2]))
        taught = await each.ask(Order.SPELL)
        await taught.finished()
        await die(each)
        await up_again(each)
        anew = await each.ask(Order.SPELL)
        await anew.finished()
    assert [sink.tokens for sink in (untaught, taught, anew)] == [[0], [3, 2], [3, 2]]


async def test_close_before_start_is_harmless() -> None:
    async with world() as each:
        await each.supervisor.close()
        assert each.engine.ready is None


async def test_watch_outlives_engines_and_is_cancelled_alone() -> None:
    async with started() as each:
        watch = asyncio.ensure_future(each.supervisor.watch())
        await die(each)
        await up_again(each)
        assert not watch.done()
        watch.cancel()
        await asyncio.wait({watch})
        sink = await each.ask(3)
        await sink.finished()


async def test_the_socket_path_is_short_where_the_temporary_folder_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * MAX_SOCKET_PATH)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    async with started() as each:
        assert len(str(each.folder)) < MAX_SOCKET_PATH
    assert list(long.iterdir()) == []
