"""A full queue: refused in a way that the OpenAI client understands, at nobody else's cost."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fixtures.server import MODEL, RunningServer, serving

ENDLESS: dict[str, Any] = {"model": MODEL, "prompt": "Hi", "max_tokens": 2000, "extra_body": {"ignore_eos": True}}
PROMPT = "The sun rises in the"


@pytest.fixture(scope="module")
def small(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("small"), "--max-seqs", "1", "--max-waiting", "1") as running:
        yield running


@asynccontextmanager
async def full(small: RunningServer) -> AsyncIterator[tuple[openai.AsyncOpenAI, AsyncExitStack, asyncio.Task[str]]]:
    """One request runs until the stack is closed, one waits."""
    async with (
        openai.AsyncOpenAI(base_url=small.api, api_key="any", max_retries=0) as client,
        AsyncExitStack() as occupied,
    ):
        stream = await occupied.enter_async_context(await client.completions.create(**ENDLESS, stream=True))
        await anext(aiter(stream))
        waiting = asyncio.create_task(text_of(client))
        await asyncio.to_thread(small.metrics_when, lambda seen: seen["requests_waiting"] == 1, "one waits")
        yield client, occupied, waiting
        await occupied.aclose()
        await waiting


async def text_of(client: openai.AsyncOpenAI) -> str:
    answer = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=6, temperature=0)
    return answer.choices[0].text


async def test_one_too_many_is_told_when_to_come_back(small: RunningServer) -> None:
    expected = small.greedy(PROMPT, 6)
    async with full(small) as (client, occupied, waiting):
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as raised:
                await client.completions.create(model=MODEL, prompt=PROMPT, stream=stream)
            assert raised.value.code == "queue_full"
            headers = raised.value.response.headers
            assert 1 <= int(headers["retry-after"]) <= 120
            assert 0 < int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"])
        seen = await asyncio.to_thread(small.metrics)
        assert (seen["requests_running"], seen["requests_waiting"]) == (1, 1)
        await occupied.aclose()
        assert await waiting == expected
    await asyncio.to_thread(small.metrics_when_idle)


async def test_the_client_comes_back_by_itself(small: RunningServer) -> None:
    expected = small.greedy(PROMPT, 6)
    before = small.metrics()["rejections_total"]
    async with full(small) as (client, occupied, waiting):
        patient = asyncio.create_task(text_of(client.with_options(max_retries=5)))
        await asyncio.to_thread(small.metrics_when, lambda seen: seen["rejections_total"] > before, "it was refused")
        await occupied.aclose()
        assert await patient == await waiting == expected
