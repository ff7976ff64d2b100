"""The Responses API over a fake engine: clients, bodies, and events checked by the SDK's own types."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import httpx2
import openai
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.answers.reasoning import ReasoningFormat
from gateway.http.app import create_app
from gateway.services import Services
from tests.fixtures.fakes import MODEL, FakeEngine, Script, client_of, toy_model, toy_services

THINKING = toy_model(reasoning=ReasoningFormat())
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": None,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HELLO: dict[str, Any] = {"model": MODEL, "input": "hi"}
_event: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def saying(*texts: str, finish: Any = "stop") -> FakeEngine:
    """A text a request, the last one again and again."""
    engine = FakeEngine()

    def script(submit: Any, choice: int) -> Script:
        return Script.of(texts[min(len(engine.submitted), len(texts)) - 1], finish)

    engine.script = script
    return engine


def in_pieces(text: str, size: int, finish: Any = "stop") -> FakeEngine:
    data = text.encode()
    pieces = [list(data[start : start + size]) for start in range(0, len(data), size)]
    return FakeEngine(script=lambda submit, choice: Script([*pieces, []], finish))


def services_of(engine: FakeEngine | None = None, model: Any = None, **settings: Any) -> Services:
    """Ids differ, and are the same in every run."""
    return replace(toy_services(engine, model, **settings), random_bits=random.Random(0).getrandbits)


@asynccontextmanager
async def sdk(services: Services, key: str = "any") -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(app=create_app(services))
    async with openai.AsyncOpenAI(
        base_url="http://test/v1", api_key=key, http_client=httpx2.AsyncClient(transport=transport), max_retries=0
    ) as client:
        yield client


def raw(services: Services) -> httpx.AsyncClient:
    return client_of(services)


def checked_events(body: str) -> list[dict[str, Any]]:
    """Every one by the SDK's type, its name on the event line, numbered from 0."""
    found = []
    for number, block in enumerate(body.strip().split("\n\n")):
        name, data = block.split("\n")
        event = _event.validate_json(data.removeprefix("data: "), strict=True)
        assert name == f"event: {event.type}"
        assert event.sequence_number == number
        found.append(event.to_dict())
    return found


def prompt_of(engine: FakeEngine, number: int = -1) -> str:
    """Of a request, with its control tokens."""
    tokenizer = toy_model().tokenizer
    return tokenizer.decode(engine.submitted[number].prompt, skip_special=False)
