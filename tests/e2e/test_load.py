"""Many requests at once: shared forward passes, clients that leave at any point, neighbours that are hostile."""

import asyncio
import random
from typing import Any

import httpx
import openai

from tests.fixtures.server import MODEL, PATIENCE_S, Metrics, RunningServer

PROMPTS = ["One, two,", "The sea is", "My name is", "def add(a, b):", "Rain falls on", "A cat sat on the"]


def mean_between(before: Metrics, after: Metrics, name: str) -> float:
    return (after[f"{name}_sum"] - before[f"{name}_sum"]) / (after[f"{name}_count"] - before[f"{name}_count"])


async def streamed(client: openai.AsyncOpenAI, prompt: str, max_tokens: int) -> str:
    stream = await client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    return "".join([chunk.choices[0].text async for chunk in stream])


async def test_32_streams_share_forward_passes(server: RunningServer, async_client: openai.AsyncOpenAI) -> None:
    prompts = [f"{index} and {prompt}" for index in range(6) for prompt in PROMPTS][:32]
    before = server.metrics_when_idle()
    texts = await asyncio.gather(*[streamed(async_client, prompt, 16) for prompt in prompts])
    after = server.metrics_when_idle()
    assert mean_between(before, after, "batch_size") > 16
    assert after["generation_tokens_total"] - before["generation_tokens_total"] == 32 * 16
    alone = [await streamed(async_client, prompt, 16) for prompt in prompts[:2]]
    assert texts[:2] == alone


class Client:
    """It stays to the end of its answer, or leaves: after some time, wherever its request is by then, or while its
    stream is being read."""

    def __init__(self, draw: random.Random) -> None:
        self.stays = draw.random() < 0.5
        self.streams = draw.random() < 0.6
        self.num_reads = draw.choice([None, 1, 2, 5]) if self.streams and not self.stays else None
        self.finished = False
        self._patience_s = draw.choice([0, 0.02, 0.2, 1.0, 3.0])
        prompt = draw.choice(PROMPTS) + " again" * draw.choice([0, 1, 1, 400])  # the long ones take several steps
        self._body = {"model": MODEL, "prompt": prompt, "max_tokens": 4 if self.stays else 1500, "stream": self.streams}
        self._body["ignore_eos"] = not self.stays

    async def run(self, http: httpx.AsyncClient, url: str) -> None:
        talk = asyncio.create_task(self._talk(http, url))
        leaves_by_time = not self.stays and self.num_reads is None
        await asyncio.wait({talk}, timeout=self._patience_s if leaves_by_time else None)
        talk.cancel()
        await asyncio.wait({talk})
        if not talk.cancelled():
            talk.result()

    async def _talk(self, http: httpx.AsyncClient, url: str) -> None:
        async with http.stream("POST", url, json=self._body) as answer:
            answer.raise_for_status()
            data, reads = b"", 0
            async for part in answer.aiter_raw():
                data, reads = data + part, reads + 1
                if reads == self.num_reads:
                    return
        self.finished = data.endswith(b"data: [DONE]\n\n") if self.streams else b'"finish_reason"' in data


async def test_200_requests_of_which_half_are_cut_off(server: RunningServer) -> None:
    text_before = server.greedy("The capital of Italy is")
    before = server.metrics_when_idle()
    draw = random.Random(1)
    clients = [Client(draw) for _ in range(200)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits) as http:
        await asyncio.gather(*[client.run(http, f"{server.api}/completions") for client in clients])
    after = await asyncio.to_thread(server.metrics_when_idle)
    stayed = [client for client in clients if client.stays]
    reading = [client for client in clients if client.num_reads is not None]
    assert 80 < len(stayed) < 120 and len(reading) > 20
    assert [client.finished for client in clients] == [client.stays for client in clients]
    left = "aborts_total{cause=client_closed}"
    assert len(reading) <= after[left] - before[left] <= len(clients) - len(stayed)
    assert after["failed_steps_total"] == 0
    assert server.greedy("The capital of Italy is") == text_before


async def test_a_client_that_leaves_frees_its_blocks_while_others_go_on(server: RunningServer) -> None:
    """Both answers would take minutes, so nothing here is freed by ending."""
    url = f"{server.api}/completions"
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    long = {**body, "prompt": "word " * 300}
    server.metrics_when_idle()
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http, http.stream("POST", url, json=body) as stays:
        going_on = stays.aiter_raw()
        await anext(going_on)
        async with http.stream("POST", url, json=long) as leaves:
            reading = leaves.aiter_raw()
            await anext(reading)
            held = await asyncio.to_thread(server.metrics_when, lambda seen: seen["requests_running"] == 2, "both run")
        freed = await asyncio.to_thread(server.metrics_when, lambda seen: seen["requests_running"] == 1, "one is gone")
        assert freed["kv_blocks_used"] < held["kv_blocks_used"] - 10  # of 19: the other may have grown
        await anext(going_on)
    await asyncio.to_thread(server.metrics_when_idle)


HOSTILE: list[dict[str, Any]] = [
    {"prompt": [2**40]},
    {"prompt": [-1]},
    {"prompt": []},
    {"prompt": "x", "n": 100_000},
    {"prompt": "x", "max_tokens": 10**30},
    {"prompt": "x", "temperature": -1},
    {"prompt": "x", "logit_bias": {"1": 1e9}},
    {"prompt": "x", "stop": ["a"] * 5},
    {"prompt": "x", "stop": [""]},
    {"prompt": "x", "logprobs": 1000},
    {"prompt": "x", "seed": 2**70},
    {"prompt": "word " * 200_000},
    {"prompt": ["x"] * 1000},
]
EXTREME: list[dict[str, Any]] = [
    {"temperature": 2, "top_p": 0, "min_p": 1},
    {"temperature": 5e-324},
    {"logit_bias": {str(token): -100 for token in range(1000)}},
    {"logit_bias": {"198": 100}, "stop": ["\n" * 1000]},
    {"presence_penalty": 2, "frequency_penalty": -2, "repetition_penalty": 0.01},
    {"repetition_penalty": 10, "top_k": 1, "logprobs": 20},
    {"n": 16, "max_tokens": 1},
    {"seed": -(2**63)},
    {"stop_token_ids": list(range(128))},
]


async def test_hostile_neighbours_disturb_nobody(server: RunningServer, async_client: openai.AsyncOpenAI) -> None:
    expected = [server.greedy(prompt, 24) for prompt in PROMPTS]
    good = [asyncio.create_task(streamed(async_client, prompt, 24)) for prompt in PROMPTS]
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:

        async def status(fields: dict[str, Any]) -> int:
            return (await client.post(f"{server.api}/completions", json={"model": MODEL, **fields})).status_code

        refused = await asyncio.gather(*[status(fields) for fields in HOSTILE])
        answered = await asyncio.gather(*[status({"prompt": "x", "max_tokens": 4, **fields}) for fields in EXTREME])
    assert refused == [400] * len(HOSTILE)
    assert answered == [200] * len(EXTREME)
    texts = await asyncio.gather(*good)
    assert [text.startswith(start) for text, start in zip(texts, expected, strict=True)] == [True] * len(PROMPTS)
