"""The real Anthropic client against the app: its types, its stream parser and accumulator, its error classes."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import httpx2
import pytest

from gateway.answers.reasoning import ReasoningFormat
from gateway.http.app import create_app
from scheduler.types import Rejected
from tests.fixtures.fakes import MODEL, FakeEngine, Script, toy_model, toy_ready, toy_services

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
THINKING = toy_model(reasoning=ReasoningFormat())
BASE: dict[str, Any] = {"model": MODEL, "max_tokens": 300, "messages": MESSAGES}
HOT: dict[str, Any] = {"extra_body": {"temperature": 1.5}}
Connect = Callable[..., anthropic.AsyncAnthropic]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients = []

    def build(engine: FakeEngine | None = None, model: Any = None, **settings: Any) -> anthropic.AsyncAnthropic:
        transport = httpx2.ASGITransport(app=create_app(toy_services(engine, model, **settings)))
        http_client = httpx2.AsyncClient(transport=transport)
        clients.append(
            anthropic.AsyncAnthropic(base_url="http://test", api_key="any", http_client=http_client, max_retries=0)
        )
        return clients[-1]

    yield build
    for client in clients:
        await client.close()


def saying(text: str, finish: Any = "stop", **changes: Any) -> FakeEngine:
    return FakeEngine(script=lambda submit, choice: Script.of(text, finish), **changes)


async def test_a_message(connect: Connect) -> None:
    answer = await connect(FakeEngine(cached_tokens=2)).messages.create(**BASE)
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", MODEL)
    assert answer.id.startswith("msg_")
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "Hello", "citations": None}]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (3, 2, 6)
    assert answer._request_id


ANSWERS = [
    ("Hello", {}, "end_turn"),
    ("Hello", {"max_tokens": 3}, "max_tokens"),
    ("Hello", {"stop_sequences": ["lo", "xyz"]}, "stop_sequence"),
    ("", {}, "end_turn"),
    (CALL, {"tools": [WEATHER]}, "tool_use"),
    ("I look. " + CALL + CALL, {"tools": [WEATHER]}, "tool_use"),
    ("<think>\nHm.\n</think>\n\nHello", {}, "end_turn"),
    ("<think>\nHm.\n</think>\n\n" + CALL, {"tools": [WEATHER]}, "tool_use"),
    ("<think>\nHm.\n</think>\n\nHello", {"thinking": {"type": "adaptive", "display": "omitted"}}, "end_turn"),
]


@pytest.mark.parametrize(("text", "fields", "stop_reason"), ANSWERS)
async def test_a_stream_makes_the_whole_answer(
    connect: Connect, text: str, fields: dict[str, Any], stop_reason: str
) -> None:
    whole = await connect(saying(text), THINKING).messages.create(**{**BASE, **fields})
    async with connect(saying(text), THINKING).messages.stream(**{**BASE, **fields}) as stream:
        streamed = await stream.get_final_message()
    assert whole.stop_reason == stop_reason
    differs = {"parsed_output"}  # of the helper's own
    assert streamed.to_dict()["content"] == [
        {name: value for name, value in block.to_dict().items() if name not in differs} for block in whole.content
    ]
    for name in ("id", "model", "stop_reason", "stop_sequence", "usage"):
        assert getattr(streamed, name) == getattr(whole, name)


async def test_the_stop_sequence_is_told(connect: Connect) -> None:
    answer = await connect().messages.create(**BASE, stop_sequences=["xyz", "lo"])
    assert answer.stop_sequence == "lo"
    assert answer.content[0].to_dict()["text"] == "Hel"


async def test_thinking_is_a_block_of_its_own(connect: Connect) -> None:
    engine = saying("<think>\nHm.\n</think>\n\nHello")
    answer = await connect(engine, THINKING).messages.create(**BASE, thinking={"type": "enabled", "budget_tokens": 50})
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].to_dict() == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert answer.usage.output_tokens_details is not None and answer.usage.output_tokens_details.thinking_tokens > 0


async def test_the_order_of_events(connect: Connect) -> None:
    engine = saying("<think>\nHm.\n</think>\n\n" + CALL)
    stream = await connect(engine, THINKING).messages.create(**BASE, tools=[WEATHER], stream=True)
    types: list[Any] = []
    async for event in stream:
        name = (event.type, getattr(getattr(event, "delta", None), "type", None))
        types += [name] if types[-1:] != [name] else []
    assert types == [
        ("message_start", None),
        ("content_block_start", None),
        ("content_block_delta", "thinking_delta"),
        ("content_block_delta", "signature_delta"),
        ("content_block_stop", None),
        ("content_block_start", None),
        ("content_block_delta", "input_json_delta"),
        ("content_block_stop", None),
        ("message_delta", None),
        ("message_stop", None),
    ]


async def test_a_call_and_its_result(connect: Connect) -> None:
    answer = await connect(saying(CALL)).messages.create(**BASE, tools=[WEATHER])
    (call,) = answer.content
    assert call.type == "tool_use" and call.id.startswith("toolu_")
    assert (call.name, call.input) == ("weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "21 degrees"}]}
    turns = [*MESSAGES, answer.to_param(), {"role": "user", "content": [result]}]
    engine = FakeEngine()
    after = await connect(engine).messages.create(**{**BASE, "messages": turns}, tools=[WEATHER])
    prompt = bytes(token for token in engine.submitted[0].prompt if token < 256)
    assert b"21 degrees" in prompt and b'"Paris"' in prompt
    assert after.stop_reason == "end_turn"


async def test_an_answer_of_a_given_schema(connect: Connect) -> None:
    engine = saying('{"x": 1}')
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    await connect(engine).messages.create(**BASE, output_config=config)
    assert engine.submitted[0].params.grammar is not None


async def test_the_last_message_of_the_assistant_goes_on(connect: Connect) -> None:
    engine = FakeEngine()
    await connect(engine).messages.create(
        **{**BASE, "messages": [*MESSAGES, {"role": "assistant", "content": "I say"}]}
    )
    assert bytes(engine.submitted[0].prompt[-5:]) == b"I say"


async def test_more_than_the_context_holds_may_be_asked_for(connect: Connect) -> None:
    engine = saying("x" * 100, ready=toy_ready(max_model_len=24))
    answer = await connect(engine).messages.create(**BASE)
    assert answer.stop_reason == "model_context_window_exceeded"
    assert answer.usage.input_tokens + answer.usage.output_tokens == 24


async def test_tokens_are_counted_as_the_prompt_has_them(connect: Connect) -> None:
    engine = FakeEngine()
    client = connect(engine)
    fields: dict[str, Any] = {"system": "Be kind.", "tools": [WEATHER], "messages": MESSAGES, "model": MODEL}
    counted = await client.messages.count_tokens(**fields)
    assert not engine.submitted
    answer = await client.messages.create(**fields, max_tokens=5)
    assert counted.input_tokens == answer.usage.input_tokens == len(engine.submitted[0].prompt)


async def test_heart_beats_do_not_disturb_the_parser(connect: Connect) -> None:
    client = connect(saying("x" * 300), ping_s=0.0001)
    async with client.messages.stream(**{**BASE, "max_tokens": 400}) as stream:
        assert await stream.get_final_text() == "x" * 300


async def test_what_has_no_effect_is_told(connect: Connect) -> None:
    raw = await connect().messages.with_raw_response.create(
        **{
            **BASE,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}]}],
            "metadata": {"user_id": "me"},
            "thinking": {"type": "enabled", "budget_tokens": 2000},
        },
    )
    assert set(raw.headers["x-headrace-ignored"].split(", ")) == {
        "messages[0].content[0].cache_control",
        "metadata",
        "thinking",
        "thinking.budget_tokens",
    }


async def test_an_error_in_a_stream_is_raised(connect: Connect) -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[104], [105], []], "error"))
    with pytest.raises(anthropic.APIStatusError) as raised:
        async with connect(engine).messages.stream(**BASE) as stream:
            await stream.get_final_message()
    assert raised.value.body["error"]["type"] == "api_error"  # type: ignore[index]
    assert raised.value.request_id


def refusing(error: Exception) -> FakeEngine:
    return FakeEngine(refusal=lambda submit: error)


@pytest.mark.parametrize(
    ("engine", "fields", "error", "kind", "words"),
    [
        (
            FakeEngine,
            {"extra_body": {"temperature": 1.5}},
            anthropic.BadRequestError,
            "invalid_request_error",
            "temperature",
        ),
        (FakeEngine, {"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error", "max_tokens"),
        (FakeEngine, {"model": "other"}, anthropic.NotFoundError, "not_found_error", "'other'"),
        (FakeEngine, {"stop_sequences": ["x"] * 17}, anthropic.BadRequestError, "invalid_request_error", "stop_seq"),
        (
            lambda: FakeEngine(ready=toy_ready(max_model_len=4)),
            {},
            anthropic.BadRequestError,
            "invalid_request_error",
            "maximum context length",
        ),
        (lambda: refusing(Rejected("queue_full", "full", 1.0)), {}, anthropic.RateLimitError, "rate_limit_error", ""),
        (lambda: FakeEngine(ready=None), {}, anthropic.InternalServerError, "overloaded_error", ""),
        (
            lambda: FakeEngine(lambda submit, choice: Script([], "expired")),
            {},
            anthropic.InternalServerError,
            "timeout_error",
            "",
        ),
    ],
)
async def test_error_classes(
    connect: Connect,
    engine: Callable[[], FakeEngine],
    fields: dict[str, Any],
    error: type[anthropic.APIStatusError],
    kind: str,
    words: str,
) -> None:
    with pytest.raises(error) as raised:
        await connect(engine()).messages.create(**{**BASE, **fields})
    body: Any = raised.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert words in body["error"]["message"]
    assert raised.value.request_id == body["request_id"]


async def test_the_client_retries_a_full_queue(connect: Connect) -> None:
    refusals = [Rejected("queue_full", "full", 0.0)]
    client = connect(FakeEngine(refusal=lambda submit: refusals.pop() if refusals else None))
    answer = await client.with_options(max_retries=1).messages.create(**BASE)
    assert answer.stop_reason == "end_turn"


async def test_a_call_that_was_cut_has_no_input(connect: Connect) -> None:
    cut = saying(CALL[:60], finish="length")
    answer = await connect(cut).messages.create(**BASE, tools=[WEATHER])
    assert answer.stop_reason == "max_tokens"
    assert answer.content[0].to_dict()["input"] == {}
