"""Streams: their order, their bytes, and that they say the same as an answer read whole."""

import asyncio
import codecs
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.types import Rejected
from tests.fixtures.fakes import (
    EOS,
    MODEL,
    FakeEngine,
    Script,
    client_of,
    events,
    post,
    toy_app,
    toy_services,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}


async def stream(engine: FakeEngine, path: str = CHAT, **fields: Any) -> list[Any]:
    body = chat(**fields) if path == CHAT else {"model": MODEL, "prompt": "hi", **fields}
    async with client_of(toy_services(engine)) as client:
        answer = await client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert b"\r" not in answer.content
    return events(answer.content)


def choices_of(chunks: list[Any], index: int = 0) -> list[Any]:
    return [choice for chunk in chunks if chunk != "[DONE]" for choice in chunk["choices"] if choice["index"] == index]


def text_of(choices: list[Any]) -> str:
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


async def test_the_order_of_a_chat_stream() -> None:
    *chunks, end = await stream(FakeEngine())
    assert end == "[DONE]"
    choices = choices_of(chunks)
    assert choices[0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    assert text_of(choices) == "Hello"
    assert choices[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)


async def test_all_chunks_share_their_head() -> None:
    *chunks, _ = await stream(FakeEngine(), n=2)
    heads = {(c["id"], c["object"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}
    assert len(heads) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"


async def test_usage_comes_last_and_only_when_asked_for() -> None:
    *chunks, usage, _ = await stream(FakeEngine(cached_tokens=2), stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (5, 6)
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


async def test_no_usage_without_being_asked() -> None:
    *chunks, _ = await stream(FakeEngine(), stream_options={"include_usage": None})
    assert all("usage" not in chunk for chunk in chunks)


async def test_choices_interleave_and_each_ends_once() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("ab" * (choice + 1)))
    chunks = await stream(engine, n=3)
    for index in range(3):
        choices = choices_of(chunks, index)
        assert choices[0]["delta"]["role"] == "assistant"
        assert text_of(choices) == "ab" * (index + 1)
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]


async def test_a_completion_stream_with_echo() -> None:
    *chunks, end = await stream(FakeEngine(), COMPLETIONS, echo=True)
    assert end == "[DONE]" and chunks[0]["object"] == "text_completion"
    choices = choices_of(chunks)
    assert choices[0]["text"] == "hi" and text_of(choices) == "hiHello"
    assert choices[-1] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}


async def test_headers() -> None:
    connection = post(toy_app(), CHAT, chat(stream=True, extra=1), **{"x-request-id": "abc"})
    await connection.end()
    headers = connection.headers
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
    assert headers["x-request-id"] == "abc" and headers["x-headrace-seed"] and headers["x-headrace-ignored"] == "extra"


async def test_a_refusal_before_the_first_byte_has_its_own_status() -> None:
    engine = FakeEngine(refusal=lambda submit: Rejected("queue_full", "The queue is full.", 3.0))
    connection = post(toy_app(engine), CHAT, chat(stream=True))
    await connection.end()
    assert connection.status == 429


@pytest.mark.parametrize(("finish", "status"), [("error", 500), ("expired", 504)])
async def test_a_failure_before_the_first_token_has_its_own_status(finish: Any, status: int) -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([], finish))
    connection = post(toy_app(engine), CHAT, chat(stream=True))
    await connection.end()
    assert connection.status == status


async def test_a_failure_after_the_first_byte_is_an_event_and_the_end() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[104], [105], []], "error"), automatic=False)
    connection = post(toy_app(engine), CHAT, chat(stream=True))
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda c: len(c.sent) > 1)
    engine.step()
    engine.step()
    await connection.end()
    *chunks, last = events(connection.body)
    assert text_of(choices_of(chunks)) == "hi"
    assert last.keys() == {"error"} and last["error"]["code"] == "generation_failed"
    assert connection.sent[-1]["more_body"] is False


async def test_without_migration_the_engines_death_reaches_every_stream() -> None:
    engine = FakeEngine(automatic=False)
    app = toy_app(engine, migration=False)
    connections = [post(app, CHAT, chat(stream=True)) for _ in range(3)]
    await engine.until(lambda: len(engine.playing) == 3)
    engine.step()
    for connection in connections:
        await connection.until(lambda c: len(c.sent) > 1)
    engine.die()
    for connection in connections:
        await connection.end()
        assert events(connection.body)[-1]["error"]["code"] == "engine_unavailable"
    assert engine.aborted == []


async def test_what_piles_up_is_joined_into_one_chunk() -> None:
    engine = FakeEngine(automatic=False)
    connection = post(toy_app(engine), CHAT, chat(stream=True))
    await engine.until(lambda: bool(engine.playing))
    for _ in range(6):
        engine.step()
    await connection.end()
    parts = [choice["delta"].get("content") for choice in choices_of(events(connection.body))]
    assert parts == ["", "Hello", None]


async def test_heart_beats_are_comments() -> None:
    engine = FakeEngine(automatic=False)
    connection = post(toy_app(engine, ping_s=0.001), CHAT, chat(stream=True))
    await connection.until(lambda c: b": ping\n\n" in c.body)
    for _ in range(6):
        engine.step()
    await connection.end()
    assert text_of(choices_of(events(connection.body))) == "Hello"


# Whatever the cut of the tokens into outputs, and whoever reads: the same text, logprobs, counts and end.

TOKENS = st.lists(st.one_of(st.integers(0, 255), st.sampled_from(list("ab-é🙂".encode())), st.just(258)), max_size=30)


@st.composite
def cut(draw: st.DrawFn) -> tuple[list[list[int]], str]:
    tokens, finish = draw(TOKENS), draw(st.sampled_from(["stop", "length"]))
    tokens = [*tokens, EOS] if finish == "stop" else tokens or [97]
    outputs, at = [], 0
    while at < len(tokens):
        size = draw(st.integers(1, 4))
        outputs.append(tokens[at : at + size])
        at += size
    return outputs, finish


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=cut(), stop=st.sampled_from([None, "a", "ab", ["-", "é"], "b-"]), min_tokens=st.integers(0, 3))
def test_streamed_and_whole_say_the_same(script: tuple[list[list[int]], Any], stop: Any, min_tokens: int) -> None:
    asyncio.run(compare(script, stop, min_tokens))


async def compare(script: tuple[list[list[int]], Any], stop: Any, min_tokens: int) -> None:
    outputs, finish = script
    single = [[token] for output in outputs for token in output]
    fields = {"stop": stop, "min_tokens": min_tokens, "logprobs": True, "top_logprobs": 1, "max_tokens": 100}
    async with client_of(toy_services(FakeEngine(lambda submit, choice: Script(single, finish)))) as client:
        whole = (await client.post(CHAT, json=chat(**fields))).json()
    chunks = await stream(
        FakeEngine(lambda submit, choice: Script(outputs, finish)), stream_options={"include_usage": True}, **fields
    )
    choices, [expected] = choices_of(chunks), whole["choices"]
    assert text_of(choices) == expected["message"]["content"]
    entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert entries == expected["logprobs"]["content"]
    assert choices[-1]["finish_reason"] == expected["finish_reason"]
    assert chunks[-2]["usage"] == whole["usage"]
    assert len(entries) == whole["usage"]["completion_tokens"]
    if stop is None:
        tokens = [token for output in outputs for token in output if token < 256]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        assert expected["message"]["content"] == decoder.decode(bytes(tokens), final=finish == "stop")
