"""The real OpenAI client against the real server and model: the Responses API."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.fixtures.server import MODEL

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0}


class Capital(BaseModel):
    city: str
    country: str


def test_a_response_and_its_stream(client: openai.OpenAI) -> None:
    whole = client.responses.create(**GREEDY, input=QUESTION)
    assert (whole.output_text, whole.status) == (ANSWER, "completed")
    with client.responses.stream(**GREEDY, input=QUESTION) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert len(deltas) > 1
    assert "".join(deltas) == final.output_text == ANSWER
    assert client.responses.retrieve(final.id).output_text == ANSWER


async def test_a_conversation(async_client: openai.AsyncOpenAI) -> None:
    first = await async_client.responses.create(**GREEDY, input=QUESTION)
    second = await async_client.responses.create(
        **GREEDY, input="Say it again.", previous_response_id=first.id, max_output_tokens=20
    )
    assert first.usage is not None and second.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_a_parsed_answer(client: openai.OpenAI) -> None:
    answer = client.responses.parse(**GREEDY, input=QUESTION, text_format=Capital, max_output_tokens=100)
    assert answer.output_parsed is not None and answer.output_parsed.city == "Paris"


def test_a_response_in_the_background(client: openai.OpenAI) -> None:
    made = client.responses.create(**GREEDY, input=QUESTION, background=True)
    assert made.status == "queued"
    for _ in range(10_000):
        found = client.responses.retrieve(made.id)
        if found.status not in ("queued", "in_progress"):
            break
    assert (found.status, found.output_text) == ("completed", ANSWER)


def test_one_in_the_background_is_cancelled(client: openai.OpenAI) -> None:
    made = client.responses.create(
        model=MODEL, input=QUESTION, background=True, max_output_tokens=1500, extra_body={"ignore_eos": True}
    )
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.retrieve(made.id).status == "cancelled"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
