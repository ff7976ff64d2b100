"""One key's flood, and another's one request: it is let in among the first, and those it overtakes are told why."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, serving

FLOOD = 60
BODY: dict[str, Any] = {"model": MODEL, "prompt": "So", "max_tokens": 2, "ignore_eos": True}
ENDLESS = {**BODY, "max_tokens": 2000, "stream": True}


@pytest.fixture(scope="module")
def shared(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("shared")
    keys = folder / "keys"
    keys.write_text("sk-ann name=ann\nsk-bob name=bob\n")
    flags = ("--api-key-file", str(keys), "--no-metrics-auth", "--max-seqs", "1", "--dtype", "auto")
    with serving(folder, *flags) as running:
        yield running


def client(server: RunningServer, key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=FLOOD + 1)
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=PATIENCE_S, limits=limits)


async def causes(asking: httpx.AsyncClient, name: str) -> dict[str, float]:
    told = (await asking.get(f"/v1/requests/{name}/timeline")).raise_for_status().json()
    return {each["cause"]: each["ms"] for each in told["causes"]}


async def waiting(server: RunningServer, num: int) -> None:
    await asyncio.to_thread(server.metrics_when, lambda seen: seen["requests_waiting"] == num, f"{num} wait")


async def test_one_among_sixty_of_another_key_is_let_in_among_the_first(shared: RunningServer) -> None:
    ended: list[str] = []

    async def ask(asking: httpx.AsyncClient, name: str) -> None:
        answer = await asking.post("/v1/completions", json=BODY, headers={"x-request-id": name})
        assert answer.status_code == 200
        ended.append(name)

    async with client(shared, "sk-ann") as ann, client(shared, "sk-bob") as bob:
        names = [f"ann-{number}" for number in range(FLOOD)]
        async with ann.stream("POST", "/v1/completions", json=ENDLESS) as held:
            chunks = held.aiter_bytes()  # its end would end the stream
            await anext(chunks)
            flood = asyncio.gather(*[ask(ann, name) for name in names])
            await waiting(shared, FLOOD)
            one = asyncio.create_task(ask(bob, "bob"))
            await waiting(shared, FLOOD + 1)
        await one
        await flood
        assert ended.index("bob") < 10
        assert "waiting_fairness" not in await causes(bob, "bob")
        overtaken = [(await causes(ann, name)).get("waiting_fairness", 0) > 0 for name in names]
        assert any(overtaken)
        assert (await ann.get("/v1/requests/bob/timeline")).status_code == 404
