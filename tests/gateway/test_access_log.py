"""One line a request, with numbers and without text."""

import json
import logging
from typing import Any

import httpx
import pytest

from tests.fixtures.fakes import MODEL, FakeEngine, client_of, toy_services


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "headrace.access"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answered_request(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a secret"}], "stream": stream, "user": "me"}
    async with client_of(toy_services(FakeEngine(cached_tokens=4))) as client:
        await client.post("/v1/chat/completions", json=body, headers={"x-request-id": "r1"})
    [line] = lines(caplog)
    assert line["total_ms"] >= line["ttft_ms"] > 0
    assert sum(line["causes_ms"].values()) == pytest.approx(line["total_ms"])
    assert {"parse", "template", "prefill", "decode"} <= line["causes_ms"].keys()
    del line["total_ms"], line["ttft_ms"], line["causes_ms"]
    assert line == {
        "request_id": "r1",
        "method": "POST",
        "endpoint": "chat",
        "status": 200,
        "outcome": "stop",
        "stream": stream,
        "prompt_tokens": 11,
        "cached_tokens": 4,
        "generated_tokens": 6,
    }
    assert "secret" not in caplog.text and "Hello" not in caplog.text


async def test_a_refused_request(caplog: pytest.LogCaptureFixture, client: httpx.AsyncClient) -> None:
    caplog.set_level(logging.INFO)
    await client.post("/v1/completions", json={})
    [line] = lines(caplog)
    assert (line["status"], line["outcome"], line["ttft_ms"]) == (400, "invalid", None)


async def test_probes_are_not_logged(caplog: pytest.LogCaptureFixture, client: httpx.AsyncClient) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/health", "/ready", "/metrics"):
        await client.get(path)
    assert lines(caplog) == []
