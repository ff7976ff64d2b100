"""LiteLLM: chats, streams, tools, structured output, completions, embeddings, errors. Arguments: base URL, model."""

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no network

import litellm
from pydantic import BaseModel, Field

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    name: str = Field(max_length=12)
    rank: int = Field(ge=1, le=9)


def check_chat(fixed: dict[str, Any]) -> None:
    answer = litellm.completion(messages=MESSAGES, **fixed)
    assert answer.choices[0].message.content == "The capital of France is Paris.", answer
    assert answer.choices[0].finish_reason == "stop" and answer.usage.total_tokens > 0


def check_stream(fixed: dict[str, Any]) -> None:
    stream = litellm.completion(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **fixed)
    chunks = list(stream)
    whole = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert whole.choices[0].message.content == "The capital of France is Paris.", whole
    assert whole.usage.completion_tokens > 3 and len(chunks) > 3


def check_tools(fixed: dict[str, Any]) -> None:
    asked = {"messages": MESSAGES, "tools": [TOOL], "parallel_tool_calls": False, **fixed}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        message = litellm.completion(tool_choice=choice, **asked).choices[0].message
        (call,) = message.tool_calls
        assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    asked["messages"] = [*MESSAGES, message.model_dump(), result]
    assert litellm.completion(tool_choice="none", **asked).choices[0].message.content
    asked["messages"] = MESSAGES
    chunks = list(litellm.completion(tool_choice="required", stream=True, **asked))
    (call,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def check_schema(fixed: dict[str, Any]) -> None:
    answer = litellm.completion(messages=MESSAGES, response_format=City, **fixed)
    City.model_validate_json(answer.choices[0].message.content)


def check_the_rest(fixed: dict[str, Any], model: str) -> None:
    text = litellm.text_completion(
        prompt="The sun rises in the", **{**fixed, "model": f"text-completion-openai/{model}"}
    )
    assert text.choices[0].text
    vectors = litellm.embedding(input=["a", "b"], **{name: fixed[name] for name in ("model", "api_base", "api_key")})
    assert len(vectors.data) == 2 and len(vectors.data[0]["embedding"]) > 100
    try:
        litellm.completion(messages=MESSAGES, **{**fixed, "temperature": 9})
    except litellm.BadRequestError as error:
        assert "temperature must be between" in str(error)
    else:
        raise AssertionError("a temperature of 9 was taken")


def main(base_url: str, model: str) -> None:
    litellm.num_retries = 0
    fixed: dict[str, Any] = {"model": f"openai/{model}", "api_base": base_url, "api_key": "any"}
    fixed |= {"temperature": 0, "max_tokens": 60, "seed": 1}
    check_chat(fixed)
    check_stream(fixed)
    check_tools(fixed)
    check_schema(fixed)
    check_the_rest(fixed, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
