"""Two engines behind one address, in float32: what they share, and that nobody sees one die while the other lives."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, eventually, run_to_end, serving
from tests.fixtures.streams import Body, Seen, Watch, all_of

STORY = "Once upon a time there was a"
PAINTERS = {"messages": [{"role": "user", "content": "Name some painters of the Renaissance."}]}
NAME = {"type": "string", "maxLength": 30}
SHAPE = {"type": "object", "properties": {"name": NAME}, "required": ["name"], "additionalProperties": False}
JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "painter", "schema": SHAPE}}}
NUM_TOKENS = 20
LONG: Body = {"max_tokens": NUM_TOKENS, "ignore_eos": True}
ENGINES = ("0", "1")


@pytest.fixture(scope="module")
def pair(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("pair"), "--replicas", "2", "--dtype", "float32") as running:
        yield running


def both_up(server: RunningServer) -> None:
    server.metrics_when(lambda seen: seen["engine_up"] == 2, "both are up")


def requests(count: int) -> list[Body]:
    return [
        {"prompt": f"{number} {STORY}", "temperature": number % 2, "seed": number, **LONG, "max_tokens": 12}
        for number in range(count)
    ]


async def test_they_share_a_load_and_are_told_apart(pair: RunningServer) -> None:
    assert len(pair.engine_pids()) == 2
    before = pair.metrics()
    answers = await all_of(pair, requests(16))
    assert all(seen.usage["completion_tokens"] == 12 and not seen.error for seen in answers)
    after = pair.metrics_when_idle()
    steps = [after[f"steps_total{{engine={name}}}"] - before[f"steps_total{{engine={name}}}"] for name in ENGINES]
    assert min(steps) > 0
    rows = [after[f"batch_size_sum{{engine={name}}}"] - before[f"batch_size_sum{{engine={name}}}"] for name in ENGINES]
    assert min(rows) > 0.3 * sum(rows)
    stats = pair.get("/stats").json()
    assert [worker["gpu_id"] for worker in stats["workers"]] == [0, 1]
    assert (stats["total_workers"], stats["available_workers"]) == (2, 2)
    with httpx.stream("GET", f"{pair.url}/dashboard/events", timeout=PATIENCE_S) as events:
        event = next(json.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line)
    assert [(engine["name"], engine["up"]) for engine in event["engines"]] == [("0", True), ("1", True)]


async def test_prompts_of_one_beginning_meet(pair: RunningServer) -> None:
    """Six of them, each asked four times; one engine alone would find three of four."""
    beginnings = [f"{number} " + "The mill by the river grinds corn for the village. " * 16 for number in range(6)]
    before = pair.metrics()
    for question in range(4):
        asked: list[Body] = [{"prompt": f"{text} {question}", "max_tokens": 2} for text in beginnings]
        await all_of(pair, asked)
    after = pair.metrics_when_idle()
    found, looked_up = (after[f"prefix_{name}_total"] - before[f"prefix_{name}_total"] for name in ("hits", "queries"))
    assert found > 0.9 * 0.75 * looked_up


def kill_at(server: RunningServer, events: int, engine: int) -> Watch:
    pid = server.engine_pids()[engine]
    done: list[int] = []

    def watch(seen: Seen) -> None:
        if seen.num_events >= events and not done:
            done.append(pid)
            os.kill(pid, signal.SIGKILL)

    return watch


@pytest.mark.parametrize("engine", [0, 1])
async def test_what_a_dead_one_had_goes_on_at_the_other(pair: RunningServer, engine: int) -> None:
    both_up(pair)
    bodies: list[Body] = [
        {"prompt": STORY, "temperature": 0, **LONG},
        {"prompt": STORY, "temperature": 1, "seed": 5, "n": 4, **LONG},
        {"prompt": [STORY, "A mill", "The river"], "temperature": 0, **LONG},
        {**PAINTERS, **JSON, "temperature": 1, "seed": 3, "max_tokens": 60},
        {"prompt": "🦩🪼🦚🪿🦩🪼🦚🪿🦩🪼🦚🪿🦩🪼", "temperature": 0, **LONG},
        *requests(3),
    ]
    calm = await all_of(pair, bodies)
    before = pair.metrics_when_idle()
    died = await all_of(pair, bodies, kill_at(pair, 10, engine))
    assert [seen.content for seen in died] == [seen.content for seen in calm]
    after = pair.metrics_when_idle()
    assert after["migrations_total{outcome=moved}"] - before["migrations_total{outcome=moved}"] > 0
    assert after["migrations_total{outcome=failed}"] == 0
    both_up(pair)


async def test_while_one_is_away_the_other_serves(pair: RunningServer) -> None:
    both_up(pair)
    os.kill(pair.engine_pids()[0], signal.SIGKILL)
    pair.metrics_when(lambda seen: seen["engine_up"] == 1, "one is away")
    assert pair.get("/ready").status_code == 200
    answer = pair.post("/v1/completions", {"model": MODEL, "prompt": STORY, "max_tokens": 4})
    assert answer.status_code == 200
    both_up(pair)
    eventually(lambda: pair.get("/stats").json()["available_workers"] == 2, "both have room")


async def test_two_that_die_at_once_pause_everything_and_lose_nothing(pair: RunningServer) -> None:
    both_up(pair)
    bodies = requests(4)
    calm = await all_of(pair, bodies)
    pids = pair.engine_pids()

    def kill_both(seen: Seen) -> None:
        while seen.num_events >= 5 and pids:
            os.kill(pids.pop(), signal.SIGKILL)

    died = await all_of(pair, bodies, kill_both)
    assert [seen.content for seen in died] == [seen.content for seen in calm]


def test_too_many_for_one_device_is_told_at_start() -> None:
    ended = run_to_end("--replicas", "2", "--device", "cuda:0")
    assert ended.returncode == 2
    assert "replicas: 2 engines cannot all be on cuda:0" in ended.stderr
