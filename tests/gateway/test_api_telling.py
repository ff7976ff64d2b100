"""What a request is told about itself: effective parameters, the rendered prompt, token ids."""

import json
from typing import Any

from tests.fixtures.fakes import (
    ASSISTANT,
    EOS,
    MODEL,
    USER,
    FakeEngine,
    Script,
    client_of,
    events,
    toy_model,
    toy_services,
)

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


async def test_effective_parameters_and_where_they_come_from() -> None:
    services = toy_services(FakeEngine(), toy_model(sampling_defaults={"temperature": 0.6, "top_p": 0.9}))
    body = {"model": MODEL, "messages": HI, "top_p": 0.5, "seed": 7}
    async with client_of(services) as client:
        silent = await client.post(CHAT, json=body)
        answer = await client.post(CHAT, json=body, headers={"x-headrace-explain": "1"})
        streamed = await client.post(CHAT, json={**body, "stream": True}, headers={"x-headrace-explain": "1"})
    assert "x-headrace-parameters" not in silent.headers
    told = json.loads(answer.headers["x-headrace-parameters"])
    assert told["temperature"] == {"value": 0.6, "from": "generation_config"}
    assert told["top_p"] == {"value": 0.5, "from": "request"}
    assert told["top_k"] == {"value": 0, "from": "default"}
    assert told["seed"] == {"value": 7, "from": "request"}
    assert told["max_tokens"] == {"value": 4096 - 5, "from": "default"}
    assert json.loads(streamed.headers["x-headrace-parameters"]) == told


async def test_the_rendered_prompt_is_what_would_run() -> None:
    engine = FakeEngine()
    body = {"model": MODEL, "messages": HI, "stop": "x", "other": 1, "response_format": {"type": "json_object"}}
    async with client_of(toy_services(engine)) as client:
        rendered = (await client.post(f"{CHAT}/render", json=body)).json()
        assert not engine.submitted
        await client.post(CHAT, json=body)
    (prompt,) = rendered["prompts"]
    assert prompt["prompt_token_ids"] == engine.submitted[0].prompt
    assert prompt["prompt"] == "<|user|>hi<|end|><|assistant|>"
    assert rendered["grammar"] == engine.submitted[0].params.grammar
    assert rendered["ignored"] == ["other"] and rendered["parameters"]["stop"] == {"value": ["x"], "from": "request"}


async def test_rendered_completions() -> None:
    async with client_of(toy_services()) as client:
        body = {"model": MODEL, "prompt": [[97, 98], [99]]}
        rendered = (await client.post("/v1/completions/render", json=body)).json()
    assert [prompt["prompt_token_ids"] for prompt in rendered["prompts"]] == [[97, 98], [99]]


async def ask(engine: FakeEngine, **fields: Any) -> Any:
    async with client_of(toy_services(engine)) as client:
        return await client.post(CHAT, json={"model": MODEL, "messages": HI, **fields})


async def test_token_ids_of_prompt_and_answer() -> None:
    answer = (await ask(FakeEngine(), return_token_ids=True)).json()
    assert answer["prompt_token_ids"] == [USER, 104, 105, EOS, ASSISTANT]
    assert answer["choices"][0]["token_ids"] == [*b"Hello", EOS]


async def test_streamed_token_ids_add_up() -> None:
    chunks = events((await ask(FakeEngine(), return_token_ids=True, stream=True)).content)[:-1]
    assert chunks[0]["prompt_token_ids"] == [USER, 104, 105, EOS, ASSISTANT]
    ids = [id for chunk in chunks for choice in chunk["choices"] for id in choice.get("token_ids", ())]
    assert ids == [*b"Hello", EOS]


async def test_usage_on_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last, _ = events((await ask(FakeEngine(), stream=True, stream_options=options)).content)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 6 and last["usage"]["completion_tokens"] == 6


async def test_the_last_message_is_continued() -> None:
    engine = FakeEngine()
    turns = [*HI, {"role": "assistant", "content": "One, "}]
    assert (await ask(engine, messages=turns, continue_final_message=True)).status_code == 200
    assert engine.submitted[0].prompt == [USER, 104, 105, EOS, ASSISTANT, *b"One, "]


async def test_no_turn_is_begun_where_none_is_wanted() -> None:
    engine = FakeEngine()
    await ask(engine, add_generation_prompt=False)
    assert engine.submitted[0].prompt == [USER, 104, 105, EOS]


async def test_control_tokens_are_shown_where_asked() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[97], [USER], [98]]))
    assert (await ask(engine)).json()["choices"][0]["message"]["content"] == "ab"
    answer = (await ask(engine, skip_special_tokens=False)).json()
    assert answer["choices"][0]["message"]["content"] == "a<|user|>b"


async def test_the_stop_that_ended_it_is_told() -> None:
    assert (await ask(FakeEngine(), stop="ll")).json()["choices"][0]["stop_reason"] == "ll"
    assert (await ask(FakeEngine(), stop_token_ids=[EOS - 149])).json()["choices"][0].get("stop_reason") is None
    assert "stop_reason" not in (await ask(FakeEngine())).json()["choices"][0]


async def test_a_servers_limit_bounds_what_nobody_asked_for() -> None:
    engine = FakeEngine()
    async with client_of(toy_services(engine, max_tokens_limit=9)) as client:
        await client.post(CHAT, json={"model": MODEL, "messages": HI})
    assert engine.submitted[0].params.max_tokens == 9
