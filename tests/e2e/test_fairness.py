"""One key's flood, and another's one request: it is let in among the first, and those it overtakes are told why."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, serving

ROWS = 2
FLOOD = 60
BODY: dict[str, Any] = {"model": MODEL, "prompt": "So", "max_tokens": 16, "ignore_eos": True}


@pytest.fixture(scope="module")
def shared(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("shared")
    keys = folder / "keys"
    keys.write_text("sk-ann name=ann\nsk-bob name=bob\n")
    flags = ("--api-key-file", str(keys), "--no-metrics-auth", "--max-seqs", str(ROWS))
    with serving(folder, *flags) as running:
        yield running


def client(server: RunningServer, key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=FLOOD)
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=PATIENCE_S, limits=limits)


async def causes(asking: httpx.AsyncClient, name: str) -> dict[str, float]:
    told = (await asking.get(f"/v1/requests/{name}/timeline")).raise_for_status().json()
    return {each["cause"]: each["ms"] for each in told["causes"]}


async def test_one_among_sixty_of_another_key_is_let_in_among_the_first(shared: RunningServer) -> None:
    ended: list[str] = []

    async def ask(asking: httpx.AsyncClient, name: str) -> None:
        answer = await asking.post("/v1/completions", json=BODY, headers={"x-request-id": name})
        assert answer.status_code == 200
        ended.append(name)

    async with client(shared, "sk-ann") as ann, client(shared, "sk-bob") as bob:
        names = [f"ann-{number}" for number in range(FLOOD)]
        flood = asyncio.gather(*[ask(ann, name) for name in names])
        queued = FLOOD - 10
        await asyncio.to_thread(shared.metrics_when, lambda seen: seen["requests_waiting"] >= queued, "they wait")
        await ask(bob, "bob")
        place = ended.index("bob")
        await flood
        assert place < FLOOD / 2
        assert "waiting_fairness" not in await causes(bob, "bob")
        blamed = [name for name in names if (await causes(ann, name)).get("waiting_fairness", 0) > 0]
        assert len(blamed) >= 1
        assert (await ann.get("/v1/requests/bob/timeline")).status_code == 404
