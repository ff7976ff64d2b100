"""LangChain's ChatOpenAI against the real server: its tools, its structured output, its streams, its usage."""

from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from tests.fixtures.server import MODEL, RunningServer

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    size: Literal["small", "large"]
    rank: int = Field(ge=1, le=9)


@tool
def weather(city: Literal["Paris", "Rome"], days: Literal[1, 2, 3]) -> str:
    """The weather in a city."""
    return f"{city}: sunny for {days} days"


@pytest.fixture
def llm(server: RunningServer) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, base_url=server.api, api_key="any", temperature=0, max_retries=0, max_tokens=60, seed=1
    )


def test_an_answer_and_its_usage(llm: ChatOpenAI) -> None:
    answer = llm.invoke(QUESTION)
    assert answer.content == ANSWER
    assert answer.response_metadata["finish_reason"] == "stop"
    usage = answer.usage_metadata
    assert usage is not None and usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"] > 0


def test_a_stream_and_its_usage(llm: ChatOpenAI) -> None:
    chunks = list(llm.stream(QUESTION, stream_usage=True))
    assert len(chunks) > 3
    whole: Any = sum(chunks[1:], chunks[0])
    assert isinstance(whole, AIMessageChunk) and whole.content == ANSWER
    assert whole.usage_metadata == llm.invoke(QUESTION).usage_metadata


async def test_async_and_in_batches(llm: ChatOpenAI) -> None:
    answers = await llm.abatch([QUESTION, QUESTION])
    assert [answer.content for answer in answers] == [ANSWER, ANSWER]
    stream: AsyncIterator[AIMessageChunk] = llm.astream(QUESTION)
    assert "".join([str(chunk.content) async for chunk in stream]) == ANSWER


@pytest.mark.parametrize("choice", ["weather", "required", "any"])
def test_bound_tools_and_the_round_back(llm: ChatOpenAI, choice: str) -> None:
    bound = llm.bind_tools([weather], tool_choice=choice, strict=True, parallel_tool_calls=False)
    question = HumanMessage("How is the weather in Paris?")
    answer = bound.invoke([question])
    assert isinstance(answer, AIMessage) and answer.tool_calls and not answer.invalid_tool_calls
    results = [weather.invoke(call) for call in answer.tool_calls]
    assert all(isinstance(result, ToolMessage) and "sunny" in str(result.content) for result in results)
    final = llm.bind_tools([weather], tool_choice="none").invoke([question, answer, *results])
    assert final.content and not final.tool_calls


def test_streamed_calls_add_up(llm: ChatOpenAI) -> None:
    bound = llm.bind_tools([weather], tool_choice="weather", strict=True)
    chunks = list(bound.stream("How is the weather in Rome?"))
    whole: Any = sum(chunks[1:], chunks[0])
    (call,) = whole.tool_calls
    assert call["name"] == "weather" and weather.invoke(call["args"])
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) > 1


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(llm: ChatOpenAI, method: Any) -> None:
    answer = llm.with_structured_output(City, method=method, strict=True).invoke("Tell me of Paris.")
    assert isinstance(answer, City)


def test_structured_output_of_a_tool_that_is_not_strict(llm: ChatOpenAI) -> None:
    assert isinstance(llm.with_structured_output(City, method="function_calling").invoke("Tell me of Rome."), City)


def test_structured_output_as_a_dictionary_with_the_raw_message(llm: ChatOpenAI) -> None:
    both: Any = llm.with_structured_output(City, method="json_schema", include_raw=True).invoke("Tell me of Rome.")
    assert both["parsing_error"] is None and both["parsed"] == City.model_validate_json(both["raw"].content)


def test_log_probabilities(llm: ChatOpenAI) -> None:
    answer = llm.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens).startswith(ANSWER)


def test_embeddings(server: RunningServer) -> None:
    embedder = OpenAIEmbeddings(model=MODEL, base_url=server.api, api_key="any", check_embedding_ctx_length=False)
    near, far = embedder.embed_documents(["a cat", "a treaty on tariffs"])
    assert len(near) == len(far) > 100 and near != far
