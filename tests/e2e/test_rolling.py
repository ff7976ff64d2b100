"""Engines that are drained, resumed and reloaded under streams, by the commands, in float32: nobody notices. Two behind
two gateways, so that each gateway has requests in each engine."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from gateway.rolling import commands
from tests.fixtures.server import MODEL, PATIENCE_S, ROOT, RunningServer, environment, serving
from tests.fixtures.streams import Body, Seen, all_of

STORY = "Once upon a time there was a"
NUM_TOKENS = 24
Done = TypeVar("Done")


@pytest.fixture(scope="module")
def pair(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    flags = ("--replicas", "2", "--gateways", "2", "--dtype", "float32", "--admin")
    with serving(tmp_path_factory.mktemp("rolling"), *flags) as running:
        running.metrics_when(lambda seen: seen["gateways"] == 2, "both serve")
        yield running


def command(server: RunningServer, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words, "--url", server.url],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def told(server: RunningServer) -> list[dict[str, Any]]:
    engines: list[dict[str, Any]] = server.get("/admin/engines").raise_for_status().json()["engines"]
    return engines


def states(server: RunningServer) -> list[str]:
    return [engine["state"] for engine in told(server)]


def requests(count: int) -> list[Body]:
    common = {"ignore_eos": True, "max_tokens": NUM_TOKENS}
    return [
        {"prompt": f"{number} {STORY}", "temperature": number % 2, "seed": number, **common} for number in range(count)
    ]


async def meanwhile(server: RunningServer, bodies: list[Body], act: Callable[[], Done]) -> tuple[list[Seen], Done]:
    """It is done as soon as the first has said something."""
    begun = asyncio.Event()
    streams = asyncio.create_task(all_of(server, bodies, lambda seen: begun.set()))
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    done = await asyncio.to_thread(act)
    return await streams, done


def contents(answers: list[Seen]) -> list[tuple[object, ...]]:
    return [seen.content for seen in answers]


@pytest.fixture(scope="module")
def calm(pair: RunningServer) -> list[tuple[object, ...]]:
    """What all answer where nothing happens."""
    return contents(asyncio.run(all_of(pair, requests(12))))


async def test_a_drain_moves_what_runs(
    pair: RunningServer, calm: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = pair.metrics_when_idle()
    answers, went_well = await meanwhile(pair, requests(12), lambda: commands.drain(pair.url, "", 0, force=False))
    assert went_well and "engine 0 is drained" in capsys.readouterr().out
    assert contents(answers) == calm
    after = pair.metrics_when_idle()
    assert after["migrations_total{outcome=moved}"] > before["migrations_total{outcome=moved}"]
    assert (after["engine_draining{engine=0}"], after["engine_up{engine=0}"]) == (1, 0)
    assert after["engine_restarts_total"] == 0
    assert [worker["state"] for worker in pair.get("/stats").json()["workers"]] == ["drained", "up"]
    assert (states(pair), len(pair.engine_pids())) == (["drained", "up"], 1)
    refused = command(pair, "drain", "1")
    assert refused.returncode == 1 and "No other engine serves but engine 1" in refused.stderr


async def test_the_one_that_is_left_is_reloaded_in_a_pause_and_the_other_comes_back(
    pair: RunningServer, calm: list[tuple[object, ...]]
) -> None:
    """Requests wait, also those that come meanwhile, and at both gateways."""
    bodies = requests(6)

    async def late() -> list[Seen]:
        async with httpx.AsyncClient(base_url=pair.url, timeout=PATIENCE_S) as client:
            while "reloading" not in [each["state"] for each in (await client.get("/admin/engines")).json()["engines"]]:
                await asyncio.sleep(0.1)
        return await all_of(pair, bodies)

    coming = asyncio.create_task(late())
    answers, went_well = await meanwhile(pair, bodies, lambda: commands.reload(pair.url, "", {"max_seqs": "7"}))
    assert went_well and states(pair) == ["drained", "up"]
    assert contents(answers) == contents(await coming) == calm[:6]
    done = command(pair, "resume", "0")
    assert done.returncode == 0 and "engine 0 takes work" in done.stdout
    assert [(each["state"], each["max_seqs"]) for each in told(pair)] == [("up", 7)] * 2
    steps = pair.metrics()["steps_total{engine=0}"]
    assert contents(await all_of(pair, bodies)) == calm[:6]
    after = pair.metrics_when_idle()
    assert after["steps_total{engine=0}"] > steps and after["migrations_total{outcome=failed}"] == 0


async def test_a_reload_changes_all_of_them_one_at_a_time(pair: RunningServer, calm: list[tuple[object, ...]]) -> None:
    pids = pair.engine_pids()
    answers, went_well = await meanwhile(pair, requests(12), lambda: commands.reload(pair.url, "", {"max_seqs": "9"}))
    assert went_well and contents(answers) == calm
    stand = [(each["max_seqs"], each["settings"]["max_seqs"], each["state"]) for each in told(pair)]
    assert stand == [(9, 9, "up")] * 2
    assert set(pids).isdisjoint(pair.engine_pids())


async def test_weights_that_cannot_be_read_change_nothing(
    pair: RunningServer, calm: list[tuple[object, ...]], gguf_path: Path, tmp_path: Path
) -> None:
    pids = pair.engine_pids()
    done = command(pair, "reload", "--model", str(tmp_path / "nothing.gguf"))
    assert done.returncode == 1 and "no model" in done.stderr
    refused = httpx.post(f"{pair.url}/admin/reload", json={"port": 1}, timeout=PATIENCE_S)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "port")
    assert pair.engine_pids() == pids
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf_path.read_bytes()[: gguf_path.stat().st_size // 2])
    answers, done = await meanwhile(pair, requests(4), lambda: command(pair, "reload", "--model", str(cut)))
    assert done.returncode == 1 and "engine 0 does not start anew" in done.stdout
    assert "engine 0 takes work with the settings of before" in done.stdout
    assert contents(answers) == calm[:4]
    assert states(pair) == ["up", "up"]
    assert [each["settings"]["model"] for each in told(pair)] == [MODEL] * 2
    assert pids[1] in pair.engine_pids()
