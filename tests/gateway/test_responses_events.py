"""The events of a streamed response: their order and fields, and that how an answer is cut changes nothing."""

from typing import Any

import msgspec
import pytest

from gateway.answers.parts import CallArguments
from gateway.http.app import create_app
from gateway.responses.output import Output
from tests.fixtures.fakes import Connection, FakeEngine, Script, post
from tests.gateway.responses_api import CALL, HELLO, THINKING, WEATHER, checked_events, in_pieces, raw, services_of

ANSWERS = {
    "text": "Hello, wörld",
    "reasoning": "<think>Let me see.</think>\n\nIt is so.",
    "call": CALL,
    "calls": f"Both:\n{CALL}\n{CALL}",
    "all": f"<think>Rain?</think>I look.\n{CALL}",
    "only reasoning": "<think>Hm</think>",
    "nothing": "",
}
BODY = {**HELLO, "tools": [WEATHER]}


async def streamed(engine: FakeEngine, **fields: Any) -> list[dict[str, Any]]:
    async with raw(services_of(engine, THINKING)) as client:
        answer = await client.post("/v1/responses", json={**BODY, "stream": True, **fields})
    assert answer.headers["content-type"].startswith("text/event-stream")
    return checked_events(answer.text)


async def whole(engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    async with raw(services_of(engine, THINKING)) as client:
        answer = await client.post("/v1/responses", json={**BODY, **fields})
    found: dict[str, Any] = answer.json()
    return found


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Deltas in a row count once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for place, name in enumerate(names) if place == 0 or name != names[place - 1] or "delta" not in name]


async def test_the_order_of_a_text() -> None:
    assert kinds(await streamed(in_pieces("Hello", 1))) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


async def test_the_order_of_reasoning_and_a_call() -> None:
    assert kinds(await streamed(in_pieces("<think>Hm</think>" + CALL, 3)))[2:-1] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_how_it_is_cut_changes_nothing(answer: str, finish: str) -> None:
    expected = await whole(in_pieces(answer, 1000, finish))
    for size in (1, 2, 7):
        events = await streamed(in_pieces(answer, size, finish))
        final = events[-1]["response"]
        assert {**final, "usage": None} == {**expected, "usage": None}
        assert assembled(events) == final["output"]
        assert (await whole(in_pieces(answer, size, finish)))["output"] == expected["output"]


def assembled(events: list[dict[str, Any]]) -> list[Any]:
    """The output as one who reads only deltas has it, with statuses and ids as they were told at the end."""
    output: list[Any] = []
    for event in events:
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(output)
                output.append(event["item"])
            case "content_part.added":
                assert event["content_index"] == len(output[-1]["content"])
                output[-1]["content"].append(event["part"])
            case "output_text.delta" | "reasoning_text.delta":
                output[event["output_index"]]["content"][event["content_index"]]["text"] += event["delta"]
            case "function_call_arguments.delta":
                output[event["output_index"]]["arguments"] += event["delta"]
            case "output_item.done":
                assert event["item"]["id"] == output[event["output_index"]]["id"]
                output[-1]["status"] = event["item"]["status"]
                assert output[-1] == event["item"]
    return output


async def test_logprobs_come_with_their_text() -> None:
    events = await streamed(in_pieces("Hello", 1), include=["message.output_text.logprobs"])
    deltas = [each for event in events if event["type"].endswith("text.delta") for each in event["logprobs"]]
    [done] = [event["logprobs"] for event in events if event["type"].endswith("text.done")]
    assert deltas == done == events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert "".join(each["token"] for each in deltas) == "Hello"


TOLD_LOGPROBS = ["message.output_text.logprobs"]
SPREAD = {
    "between calls": f"AB{CALL}CD\n{CALL}",
    "after reasoning": "<think>abc</think>\n\nYes",
    "reasoning, text, a call and text": f"<think>abc</think>One  {CALL}\n two<tool_call>no call</tool_call> \n",
    "characters of several tokens": f"wör€ld{CALL}€",
    "no message": f"<think>abc</think>{CALL}",
}


@pytest.mark.parametrize("answer", SPREAD.values(), ids=SPREAD)
async def test_logprobs_are_of_their_own_messages(answer: str) -> None:
    expected = await whole(in_pieces(answer, 1000), include=TOLD_LOGPROBS)
    assert spelled(expected) == [text for text, _ in texts_of(expected)]
    for size in (1, 2, 7):
        events = await streamed(in_pieces(answer, size), include=TOLD_LOGPROBS)
        assert events[-1]["response"]["output"] == expected["output"]
        deltas: dict[int, list[Any]] = {}
        for event in events:
            if event["type"].endswith("output_text.delta"):
                deltas.setdefault(event["output_index"], []).extend(event["logprobs"])
        assert [each for each in deltas.values() if each] == [logprobs for _, logprobs in texts_of(expected)]


def texts_of(response: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    contents = [item["content"][0] for item in response["output"] if item["type"] == "message"]
    return [(content["text"], content["logprobs"]) for content in contents]


def spelled(response: dict[str, Any]) -> list[str]:
    return [bytes(byte for each in logprobs for byte in each["bytes"]).decode() for _, logprobs in texts_of(response)]


async def test_a_complete_answer_without_text_has_an_empty_message() -> None:
    [message] = (await whole(in_pieces("", 1)))["output"]
    assert (message["type"], message["content"][0]["text"]) == ("message", "")


async def test_an_error_after_the_first_byte() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[104], [105], []], "error"), automatic=False)
    app = create_app(services_of(engine))
    asking = post(app, "/v1/responses", {**HELLO, "stream": True})
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await asking.until(lambda connection: b"delta" in connection.body)
    engine.step()
    engine.step()
    await asking.end()
    events = checked_events(asking.body.decode())
    error, failed = events[-2:]
    assert (error["type"], error["code"]) == ("error", "generation_failed")
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert [part["text"] for part in failed["response"]["output"][0]["content"]] == ["hi"]
    kept = Connection(app, "GET", f"/v1/responses/{failed['response']['id']}")
    await kept.end()
    assert msgspec.json.decode(kept.body) == failed["response"]


async def test_a_failure_before_the_first_byte_has_a_status() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([], "error"))
    async with raw(services_of(engine)) as client:
        answer = await client.post("/v1/responses", json={**HELLO, "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")


async def test_who_leaves_a_stream_cancels_it() -> None:
    engine = FakeEngine(automatic=False)
    asking = post(create_app(services_of(engine)), "/v1/responses", {**HELLO, "stream": True})
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await asking.until(lambda connection: b"delta" in connection.body)
    asking.leave()
    await asking.end()
    assert engine.aborted


def test_arguments_out_of_order_are_no_answer() -> None:
    with pytest.raises(RuntimeError):
        list(Output("x").push([CallArguments(3, "{}")], []))
