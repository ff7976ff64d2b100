"""What is kept of responses: within its bounds, the least recently used leave first, for their owner alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gateway.responses.store import Record, Store, new_record
from gateway.responses.types import InputText, Message, ReasoningShape, Response, TextShape
from tests.gateway.responses_api import HELLO, raw, services_of


def response(response_id: str, text: str = "") -> Response:
    return Response(
        id=response_id,
        created_at=1,
        model="toy",
        status="completed",
        background=False,
        instructions=None,
        max_output_tokens=None,
        metadata={},
        output=[Message(f"out_{response_id}", "assistant", [InputText(text)])],
        parallel_tool_calls=True,
        previous_response_id=None,
        reasoning=ReasoningShape(None),
        store=True,
        temperature=1.0,
        text=TextShape({"type": "text"}),
        tool_choice="auto",
        tools=[],
        top_logprobs=0,
        top_p=1.0,
        truncation="disabled",
    )


def record(response_id: str, owner: str | None = None, text: str = "") -> Record:
    given = [Message(f"in_{response_id}", "user", [InputText("hi")])]
    return new_record(response_id, owner, given).with_response(response(response_id, text))


def kept(store: Store, *ids: str) -> list[str]:
    return [each for each in ids if store.get(each, None) is not None]


def test_the_least_recently_used_leaves_first() -> None:
    store = Store(2, 1 << 20)
    store.put(record("a"))
    store.put(record("b"))
    assert store.get("a", None) is not None
    store.put(record("c"))
    assert kept(store, "a", "b", "c") == ["a", "c"]


def test_bytes_are_bounded_too() -> None:
    size = record("a", text="x" * 1000).num_bytes
    store = Store(100, 3 * size)
    for name in "abcd":
        store.put(record(name, text="x" * 1000))
    assert kept(store, *"abcd") == ["b", "c", "d"]
    store.put(record("e", text="x" * 10_000))
    assert kept(store, *"abcde") == ["b", "c", "d"]
    store.put(record("c", text="x" * 10_000))
    assert kept(store, *"abcde") == ["b", "d"]
    assert store.num_bytes == 2 * size


def test_a_record_takes_the_place_of_the_one_before() -> None:
    store = Store(2, 1 << 20)
    store.put(record("a", text="long" * 100))
    store.put(record("a"))
    assert (len(store), store.num_bytes) == (1, record("a").num_bytes)


def test_items_are_found_by_their_owner_alone() -> None:
    store = Store(10, 1 << 20)
    store.put(record("a", "one"))
    found = store.with_item("out_a", "one")
    assert found is not None and found.id == "a"
    assert found.items[0].id == "in_a"
    assert store.with_item("out_a", "two") is store.get("a", "two") is None
    store.delete("a")
    assert store.with_item("out_a", "one") is None


@pytest.mark.parametrize("seed", range(20))
def test_the_count_of_bytes_stays_true(seed: int) -> None:
    draw = random.Random(seed)
    store = Store(5, 4000)
    alive: dict[str, Record] = {}
    for _ in range(200):
        name = str(draw.randrange(10))
        if draw.random() < 0.3:
            store.delete(name)
            continue
        alive[name] = record(name, text="x" * draw.randrange(600))
        store.put(alive[name])
        assert len(store) <= 5 and store.num_bytes <= 4000
    left = [found for name in alive if (found := store.get(name, None)) is not None]
    assert store.num_bytes == sum(each.num_bytes for each in left)
    for each in left:
        store.delete(each.id)
    assert store.num_bytes == 0 and not store._of_item


async def asked(client: Any, **fields: Any) -> Any:
    return await client.post("/v1/responses", json={**HELLO, **fields})


@pytest.mark.parametrize("off", [{"responses_store": 0}, {"responses_store_bytes": 0}])
async def test_a_server_without_a_store(off: dict[str, int]) -> None:
    async with raw(services_of(**off)) as client:
        silent = await asked(client)
        assert "x-headrace-ignored" not in silent.headers and silent.json()["store"] is False
        assert (await asked(client, store=True)).headers["x-headrace-ignored"] == "store"
        assert (await client.get(f"/v1/responses/{silent.json()['id']}")).status_code == 404
        assert (await asked(client, previous_response_id=silent.json()["id"])).status_code == 404
        refused = await asked(client, background=True)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")


async def test_what_shall_not_be_kept_is_not() -> None:
    async with raw(services_of()) as client:
        answer = await asked(client, store=False)
        assert (await client.get(f"/v1/responses/{answer.json()['id']}")).status_code == 404


async def test_a_conversation_whose_start_is_gone() -> None:
    async with raw(services_of()) as client:
        first = (await asked(client)).json()["id"]
        second = (await asked(client, previous_response_id=first)).json()["id"]
        await client.delete(f"/v1/responses/{first}")
        answer = await asked(client, previous_response_id=second)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404, "previous_response_id")
    assert first in error["message"] and second in error["message"]


@pytest.mark.parametrize(
    ("query", "param"), [("order=up", "order"), ("limit=0", "limit"), ("limit=x", "limit"), ("after=none", "after")]
)
async def test_pages_that_there_are_not(query: str, param: str) -> None:
    async with raw(services_of()) as client:
        made = (await asked(client)).json()["id"]
        answer = await client.get(f"/v1/responses/{made}/input_items?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_what_is_not_built_is_named() -> None:
    async with raw(services_of()) as client:
        made = (await asked(client)).json()["id"]
        assert (await client.get(f"/v1/responses/{made}?stream=true")).status_code == 501
        refused = await client.post("/v1/responses/compact", json={})
        assert (refused.status_code, refused.headers["x-should-retry"]) == (501, "false")


async def test_references_bring_in_no_more_than_a_body_could() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "x" * 1000}]}
    async with raw(services_of(max_body_bytes=8000)) as client:
        assert (await asked(client, input=[thought, {"role": "user", "content": "hi"}])).status_code == 200
        few = await asked(client, input=[{"id": "rs_1"}] * 5 + [{"role": "user", "content": "hi"}], store=False)
        many = await asked(client, input=[{"id": "rs_1"}] * 10)
    assert few.status_code == 200
    assert (many.status_code, many.json()["error"]["code"]) == (400, "request_too_long")
    assert many.json()["error"]["param"] == "input"
