"""Instructor: models of pydantic out of chats, by tools and by JSON schemas. Arguments: base URL, model."""

import sys
from typing import Any, Literal

import instructor
import openai
from pydantic import BaseModel, Field


class City(BaseModel, extra="forbid"):
    """A city."""

    name: str = Field(max_length=12)
    size: Literal["small", "large"]
    rank: int = Field(ge=1, le=9)


def main(base_url: str, model: str) -> None:
    plain = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0)
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me of Paris."}],
        "max_tokens": 100,
        "temperature": 0,
        "max_retries": 0,
    }
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(plain, mode=mode)
        city, raw = client.chat.completions.create_with_completion(response_model=City, **asked)
        assert isinstance(city, City), city
        assert raw.usage is not None and raw.usage.completion_tokens > 0
        print(mode, city)
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    parts = list(client.chat.completions.create_partial(response_model=City, **asked))
    assert len(parts) > 3 and parts[-1].rank == city.rank, parts[-1]


if __name__ == "__main__":
    main(*sys.argv[1:])
