"""Completions: forms of the prompt, echo, logprobs, several prompts at once."""

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.fixtures.fakes import (
    BOS,
    EOS,
    MODEL,
    ByteTokenizer,
    FakeEngine,
    Script,
    client_of,
    toy_model,
    toy_ready,
    toy_services,
)


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
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"n": 129}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
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


async def test_an_echo_with_logprobs_begins_with_the_prompts_own() -> None:
    answer = (await ask(FakeEngine(), "hé", echo=True, logprobs=1, n=2)).json()
    for choice in answer["choices"]:
        logprobs = choice["logprobs"]
        assert choice["text"] == "héHello"
        assert logprobs["tokens"][:4] == ["h", "\\xc3", "\\xa9", "H"]
        assert logprobs["token_logprobs"][:4] == [None, -0.5, -1.5, -0.5]
        assert logprobs["top_logprobs"][0] is None and logprobs["top_logprobs"][1] == {"\\xc3": -0.5}
        assert {len(values) for values in logprobs.values()} == {9}


async def test_scoring_a_prompt_generates_nothing() -> None:
    engine = FakeEngine()
    answer = (await ask(engine, "abc", echo=True, logprobs=0, max_tokens=0)).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -1.5]
    assert answer["usage"]["completion_tokens"] == 0
    assert (engine.submitted[0].params.max_tokens, engine.submitted[0].params.prompt_logprobs) == (0, 0)


async def test_prompt_logprobs_by_token_id() -> None:
    answer = (await ask(FakeEngine(), "ab", prompt_logprobs=1)).json()
    told = answer["choices"][0]["prompt_logprobs"]
    assert told == [None, {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}]


async def test_best_of_answers_the_most_likely() -> None:
    """The logprobs of the stand-in fall with each token, so the shortest candidate is the most likely a token."""
    texts = ["aaaa", "b", "ccc"]
    engine = FakeEngine(script=lambda submit, choice: Script.of(texts[choice], "length"))
    answer = (await ask(engine, "x", best_of=3, n=2)).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "b"), (1, "ccc")]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 8


async def test_token_ids() -> None:
    answer = (await ask(FakeEngine(), "ab", return_token_ids=True, max_tokens=2)).json()
    assert answer["choices"][0]["prompt_token_ids"] == [97, 98]
    assert answer["choices"][0]["token_ids"] == [72, 101]


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({"truncate_prompt_tokens": 2}, [99, 100]),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, [97, 98]),
        ({"truncate_prompt_tokens": -1, "max_tokens": 4093}, [98, 99, 100]),
    ],
)
async def test_a_prompt_is_cut_only_where_asked(fields: dict[str, Any], ids: list[int]) -> None:
    engine = FakeEngine()
    assert (await ask(engine, "abcd", **fields)).status_code == 200
    assert engine.submitted[0].prompt == ids


async def test_what_reaches_the_engine() -> None:
    engine = FakeEngine()
    fields = {"allowed_token_ids": [5, 5, 6], "bad_words": ["x"], "cache_salt": "me", "priority": -3}
    assert (await ask(engine, "a", **fields)).status_code == 200
    submit = engine.submitted[0]
    assert (submit.salt, submit.priority) == (b"me", -3)
    assert (submit.params.allowed_ids, submit.params.bad_words) == ((5, 6), ((120,), (32, 120)))


async def test_a_stop_string_stays_where_asked_and_is_told() -> None:
    answer = (await ask(FakeEngine(), "a", stop=["ll"], include_stop_str_in_output=True)).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["stop_reason"]) == ("Hell", "ll")


async def test_a_suffix_that_is_hopelessly_long_is_refused_before_it_is_encoded() -> None:
    model = toy_model()
    services = toy_services(FakeEngine(ready=toy_ready(max_model_len=100)), model)
    async with client_of(services) as client:
        body = {"model": "toy", "prompt": ["a", "b"], "suffix": "x" * 101}
        error = (await client.post("/v1/completions", json=body)).json()["error"]
    assert (error["param"], error["code"], model.tokenizer.num_encodes) == ("suffix", "context_length_exceeded", 0)


async def test_fill_in_the_middle() -> None:
    class Coder(ByteTokenizer):
        vocab_size = 264
        special_ids: Mapping[str, int] = {
            **ByteTokenizer.special_ids,
            "<fim_prefix>": 261,
            "<fim_suffix>": 262,
            "<fim_middle>": 263,
        }

    engine = FakeEngine(ready=toy_ready(vocab_size=264))
    async with client_of(toy_services(engine, toy_model(tokenizer=Coder()))) as client:
        answer = await client.post("/v1/completions", json={"model": "toy", "prompt": "a", "suffix": "b"})
    assert answer.status_code == 200, answer.text
    assert engine.submitted[0].prompt == [261, 97, 262, 98, 263]


@pytest.mark.parametrize(
    ("prompt", "offsets"),
    [("日a", [0, 0, 0, 1, 2]), ("<|bos|>a", [0, 7, 8]), ([BOS, 97], [0, 0, 1]), ("a<", [0, 1, 2])],
)
async def test_offsets_of_an_echo_are_places_in_the_text(prompt: Any, offsets: list[int]) -> None:
    choice = (await ask(FakeEngine(), prompt, echo=True, logprobs=0, max_tokens=1)).json()["choices"][0]
    assert choice["logprobs"]["text_offset"] == offsets
    assert choice["text"][offsets[-1] :] == "H"


async def test_a_bos_that_is_not_echoed_takes_no_place() -> None:
    async with client_of(toy_services(FakeEngine(), toy_model(add_bos=True))) as client:
        body = {"model": MODEL, "prompt": "ab", "echo": True, "logprobs": 0, "max_tokens": 1}
        choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == ("abH", [0, 0, 1, 2])


async def test_what_is_told_of_prompts_is_bounded() -> None:
    answer = await ask(FakeEngine(), [97] * 4000, n=16, echo=True, logprobs=20, max_tokens=1)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")
