"""Real engines die under real answers, and nobody sees it: in float32, where the other way of computing what a dead
engine had computed makes no other tokens (docs/migration.md)."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.fragile import KILLS, SLOW
from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, eventually, serving
from tests.fixtures.streams import Body, Seen, all_of, killer

NUM_TOKENS = 24
CUTS = (5, 12, 18)  # tokens of the first stream at which the engine is killed
STORY = "Once upon a time there was a"
SCHEMA = {
    "type": "object",
    "properties": {
        "names": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 4, "maxItems": 6},
        "year": {"type": "integer"},
    },
    "required": ["names", "year"],
    "additionalProperties": False,
}
CHAT = {"messages": [{"role": "user", "content": "Name some painters of the Renaissance."}]}
LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 20}},
            "required": ["name"],
        },
    },
}
LOOK_UP_ONLY = {"type": "function", "function": {"name": "look_up"}}
LONG: dict[str, Any] = {"max_tokens": NUM_TOKENS, "ignore_eos": True}


@pytest.fixture(scope="module")
def fragile(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("fragile"), module="tests.fixtures.fragile") as running:
        yield running


async def test_every_kind_of_answer_survives_three_kills(fragile: RunningServer) -> None:
    """Those after the first are cut wherever they happen to be: the emojis mostly within a character, the stop string
    between its first token and its last."""
    greedy = {"prompt": STORY, "temperature": 0, **LONG}
    (plain,) = await all_of(fragile, [greedy])
    bodies: dict[str, Body] = {
        "greedy": greedy,
        "seeded": {"prompt": STORY, "temperature": 1, "seed": 11, **LONG},
        "four choices": {"prompt": STORY, "temperature": 1, "seed": 5, "n": 4, **LONG},
        "json schema": {
            **CHAT,
            "response_format": {"type": "json_schema", "json_schema": {"name": "painters", "schema": SCHEMA}},
            "temperature": 1,
            "seed": 3,
            "max_tokens": 150,
        },
        "stop": {**greedy, "stop": plain.texts[0][10:-10]},
        "emojis": {**greedy, "prompt": "🦩🪼🦚🪿🦩🪼🦚🪿🦩🪼🦚🪿🦩🪼"},
        "logprobs": {**CHAT, "logprobs": True, "top_logprobs": 2, "temperature": 1, "seed": 8, **LONG},
        "penalties": {**greedy, "temperature": 0.7, "seed": 2, "presence_penalty": 1, "frequency_penalty": 1},
        "a call": {**CHAT, "tools": [LOOK_UP], "tool_choice": LOOK_UP_ONLY, "temperature": 0, "max_tokens": 60},
        "whole": {**greedy, "n": 2, "seed": 9, "temperature": 1, "stream": False},
    }
    calm = dict(zip(bodies, await all_of(fragile, list(bodies.values())), strict=True))
    before = fragile.metrics()
    died = dict(zip(bodies, await all_of(fragile, list(bodies.values()), killer(fragile, CUTS)), strict=True))
    for kind in bodies:
        assert (kind, died[kind].content) == (kind, calm[kind].content)
    assert died["greedy"].remarks == len(CUTS)
    json.loads(died["json schema"].texts[0]), json.loads(died["a call"].calls[0].removeprefix("look_up"))
    assert died["stop"].texts[0] == plain.texts[0][:10] and died["stop"].finishes == {0: "stop"}
    assert any(len(character.encode()) == 4 for character in died["emojis"].texts[0])
    for (_, one), (_, other) in zip(calm["logprobs"].logprobs, died["logprobs"].logprobs, strict=True):
        assert other == pytest.approx(one, abs=1e-3)
    after = fragile.metrics_when_idle()
    num_tokens = sum(seen.usage["completion_tokens"] for seen in died.values())
    assert after["generation_tokens_total"] - before["generation_tokens_total"] == num_tokens
    assert after["engine_restarts_total"] == len(CUTS)
    assert after["migrations_total{outcome=moved}"] == after["migrations_total"] >= len(CUTS)
    for cause in ("failed", "client_closed", "stalled"):
        assert after[f"aborts_total{{cause={cause}}}"] == 0


async def test_sixty_four_streams_survive_two_kills(fragile: RunningServer) -> None:
    bodies: list[Body] = [
        {"prompt": f"{number} {STORY}", "temperature": number % 2, "seed": number, "max_tokens": 16, "ignore_eos": True}
        for number in range(64)
    ]
    calm = await all_of(fragile, bodies)
    died = await all_of(fragile, bodies, killer(fragile, (4, 9)))
    assert [seen.content for seen in died] == [seen.content for seen in calm]
    assert sum(seen.remarks for seen in died) > 64


async def test_an_engine_that_stands_still_is_replaced(fragile: RunningServer) -> None:
    body = {"prompt": STORY, "temperature": 0, **LONG}
    (calm,) = await all_of(fragile, [body])
    (died,) = await all_of(fragile, [body], killer(fragile, (9,), signal.SIGSTOP))
    assert (died.content, died.remarks) == (calm.content, 1)
    assert "the engine has work and said nothing for 12 s" in fragile.log


async def test_a_step_that_takes_longer_than_that_is_no_alarm(fragile: RunningServer) -> None:
    before = fragile.metrics()["engine_restarts_total"]
    body = {"prompt": STORY, "temperature": 0, "max_tokens": 2}
    seen = await all_of(fragile, [{**body, "seed": SLOW}, body])
    assert [(each.finishes, each.remarks) for each in seen] == [({0: "length"}, 0)] * 2
    assert fragile.metrics()["engine_restarts_total"] == before


async def test_what_kills_two_engines_is_not_tried_again_and_its_neighbours_go_on(fragile: RunningServer) -> None:
    before = fragile.metrics()
    body = {"prompt": STORY, "temperature": 0, **LONG}
    (calm,) = await all_of(fragile, [body])

    poisoned: list[asyncio.Task[httpx.Response]] = []
    async with httpx.AsyncClient(base_url=fragile.url, timeout=PATIENCE_S) as client:

        def send_poison(seen: Seen) -> None:
            if seen.num_events == 5 and not poisoned:
                poison = {"model": MODEL, "prompt": STORY, "seed": KILLS, "max_tokens": 5}
                poisoned.append(asyncio.create_task(client.post("/v1/completions", json=poison)))

        (died,) = await all_of(fragile, [body], send_poison)
        refused = await poisoned[0]
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "poisoned")
    assert refused.headers["x-should-retry"] == "false"
    assert died.content == calm.content
    eventually(lambda: fragile.get("/ready").status_code == 200, "the engine is back")
    after = fragile.metrics_when_idle()
    assert after["engine_restarts_total"] - before["engine_restarts_total"] == 2
    assert after["migrations_total{outcome=poison}"] - before["migrations_total{outcome=poison}"] == 1
