"""Completions: forms of the prompt, echo, logprobs, several prompts at once."""

from typing import Any

import httpx
import pytest

from tests.fixtures.fakes import BOS, EOS, MODEL, FakeEngine, Script, client_of, toy_model, toy_services


async def ask(engine: FakeEngine, prompt: Any, **fields: Any) -> httpx.Response:
    async with client_of(toy_services(engine)) as client:
        return await client.post("/v1/completions", json={"model": MODEL, "prompt": prompt, **fields})


async def test_the_answer(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/completions", json={"model": MODEL, "prompt": "hi"})).json()
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (2, 6)


async def test_sixteen_tokens_by_default() -> None:
    engine = FakeEngine()
    await ask(engine, "hi")
    assert engine.submitted[0].params.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", [[104, 105]]),
        (["a", "b"], [[97], [98]]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ("<|user|>x", [[258, 120]]),
    ],
)
async def test_forms_of_the_prompt(prompt: Any, expected: list[list[int]]) -> None:
    engine = FakeEngine()
    assert (await ask(engine, prompt)).status_code == 200
    assert [submit.prompt for submit in engine.submitted] == expected


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        (7, "prompt"),
        ({}, "prompt"),
        ([], "prompt"),
        ("", "prompt"),
        ([[]], "prompt"),
        (["a", 1], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        ([1, True], "prompt[1]"),
        ([1, 261], "prompt[1]"),
        ([-1], "prompt[0]"),
        ([[1], 2], "prompt[1]"),
        ([[1], [2, 1.5]], "prompt[1][1]"),
    ],
)
async def test_bad_prompts_are_named(prompt: Any, param: str) -> None:
    answer = await ask(FakeEngine(), prompt)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_choices_of_several_prompts_are_numbered_through() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of(f"{chr(submit.prompt[0])}{choice}"))
    answer = (await ask(engine, ["a", "b"], n=2)).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1")]
    assert answer["usage"]["prompt_tokens"] == 2


async def test_equal_prompts_get_different_seeds() -> None:
    engine = FakeEngine()
    await ask(engine, ["a", "a", "a"], n=2, seed=1)
    assert len({seed for submit in engine.submitted for seed in submit.seeds}) == 6


async def test_a_bos_is_added_once() -> None:
    engine = FakeEngine()
    async with client_of(toy_services(engine, toy_model(add_bos=True))) as client:
        for prompt in ("a", "<|bos|>a", [97]):
            await client.post("/v1/completions", json={"model": MODEL, "prompt": prompt})
    assert [submit.prompt for submit in engine.submitted] == [[BOS, 97], [BOS, 97], [97]]


@pytest.mark.parametrize("prompt", ["hé", list("hé".encode())])
async def test_echo(prompt: Any) -> None:
    answer = (await ask(FakeEngine(), prompt, echo=True)).json()
    assert answer["choices"][0]["text"] == "héHello"


async def test_logprobs() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("aé!", "stop"))
    answer = (await ask(engine, "x", logprobs=2)).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "\\xc3", "\\xa9", "!", "<|end|>"]
    assert logprobs["token_logprobs"] == [-0.5, -1.5, -2.5, -3.5, -4.5]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3]
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -1.5}
    assert engine.submitted[0].params.stop_ids == (EOS,)


async def test_logprobs_zero_gives_the_chosen_token_only() -> None:
    answer = (await ask(FakeEngine(), "x", logprobs=0, max_tokens=1)).json()
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"H": -0.5}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": 1}, "echo"),
    ],
)
async def test_fields_that_are_refused(fields: dict[str, Any], param: str) -> None:
    answer = await ask(FakeEngine(), "x", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_best_of_n_is_n() -> None:
    assert (await ask(FakeEngine(), "x", n=2, best_of=2, suffix="")).status_code == 200


async def test_prompts_times_n_is_bounded() -> None:
    answer = await ask(FakeEngine(), ["a"] * 100, n=3)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
