"""Chat completions, whole: the answer, its counts, what the engine was asked."""

from typing import Any

import httpx
import pytest

from gateway.requests.convert import seeds
from gateway.services import Services
from scheduler.protocol import Submit
from tests.fixtures.fakes import (
    ASSISTANT,
    EOS,
    MODEL,
    SYSTEM,
    USER,
    FakeEngine,
    Script,
    client_of,
    toy_model,
    toy_ready,
    toy_services,
)


def chat(content: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


async def ask(engine: FakeEngine, body: dict[str, Any]) -> httpx.Response:
    async with client_of(toy_services(engine)) as client:
        return await client.post("/v1/chat/completions", json=body)


async def submitted(body: dict[str, Any]) -> Submit:
    engine = FakeEngine()
    answer = await ask(engine, body)
    assert answer.status_code == 200, answer.text
    return engine.submitted[0]


async def test_the_answer(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/chat/completions", json=chat())).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-") and answer["model"] == MODEL and answer["created"] == 1_800_000_000
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)


async def test_usage_counts_prompt_once_and_the_tokens_of_all_choices() -> None:
    answer = (await ask(FakeEngine(cached_tokens=3), chat(n=3))).json()
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len([USER, *b"hi", EOS, ASSISTANT])
    assert usage["completion_tokens"] == 3 * len("Hello.")  # the end token is one too
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 3
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_choices_come_in_order_with_their_own_text() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("x" * (4 - choice)))
    choices = (await ask(engine, chat(n=4))).json()["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [
        (0, "xxxx"),
        (1, "xxx"),
        (2, "xx"),
        (3, "x"),
    ]


async def test_no_text_at_all() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of(""))
    [choice] = (await ask(engine, chat())).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")


async def test_max_tokens_ends_with_length(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/chat/completions", json=chat(max_tokens=2))).json()
    assert answer["choices"][0]["message"]["content"] == "He"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


async def test_max_completion_tokens_replaces_max_tokens() -> None:
    assert (await submitted(chat(max_tokens=9, max_completion_tokens=4))).params.max_tokens == 4


async def test_without_max_tokens_a_chat_may_use_all_that_fits() -> None:
    submit = await submitted(chat())
    assert submit.params.max_tokens == 4096 - len(submit.prompt)


async def test_roles_and_text_parts_reach_the_template() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "c", "tool_calls": None},
        {"role": "user", "content": "", "name": "kim"},
    ]
    submit = await submitted({"model": MODEL, "messages": messages})
    turns = [SYSTEM, *b"d", EOS, USER, *b"a\nb", EOS, ASSISTANT, *b"c", EOS, USER, EOS, ASSISTANT]
    assert submit.prompt == turns


async def test_sampling_parameters_reach_the_engine() -> None:
    body = chat(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "6": 1.5},
        min_tokens=2,
        stop_token_ids=[9],
        max_tokens=10,
        seed=42,
    )
    params = (submit := await submitted(body)).params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.presence, params.frequency, params.repetition) == (1, -1, 1.1)
    assert params.logit_bias == ((5, -100.0), (6, 1.5))
    assert (params.min_tokens, params.max_tokens, params.stop_ids) == (2, 10, (EOS, 9))
    assert submit.seeds == [42]


async def test_next_to_no_temperature_is_greedy() -> None:
    """Logits divided by so little are infinite, and of infinite ones the most likely cannot be told."""
    assert (await submitted(chat(temperature=1e-40))).params.temperature == 0
    assert (await submitted(chat(temperature=1e-5))).params.temperature == 1e-5


async def test_defaults_where_request_and_model_are_silent() -> None:
    params = (await submitted(chat())).params
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.repetition) == (1, 1, 0, 0, 1)
    assert (params.logprobs, params.stop_ids) == (None, (EOS,))


async def test_the_models_defaults_apply_where_the_request_is_silent() -> None:
    engine = FakeEngine()
    services = toy_services(engine, toy_model(sampling_defaults={"temperature": 0.6, "top_k": 20, "top_p": 0.8}))
    async with client_of(services) as client:
        await client.post("/v1/chat/completions", json=chat(top_p=0.5))
    params = engine.submitted[0].params
    assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.5)


async def test_null_is_silence() -> None:
    optional = "max_tokens max_completion_tokens temperature top_p n stop seed presence_penalty frequency_penalty "
    optional += "logit_bias logprobs top_logprobs stream stream_options user top_k min_p repetition_penalty ignore_eos "
    optional += "min_tokens stop_token_ids tools tool_choice response_format functions audio modalities prediction"
    assert (await submitted(chat(**dict.fromkeys(optional.split())))).params == (await submitted(chat())).params


async def test_ignore_eos() -> None:
    assert (await submitted(chat(ignore_eos=True))).params.stop_ids == ()


@pytest.mark.parametrize("top_k", [-1, 0, 261, 10**30])
async def test_a_top_k_that_keeps_everything_is_off(top_k: int) -> None:
    assert (await submitted(chat(top_k=top_k))).params.top_k == 0


async def test_a_drawn_seed_is_told_and_gives_the_same_seeds_again() -> None:
    engine = FakeEngine()
    answer = await ask(engine, chat(n=3))
    told = int(answer.headers["x-headrace-seed"])
    assert engine.submitted[0].seeds == (await submitted(chat(n=3, seed=told))).seeds


def test_seeds_of_choices_differ_and_fit_signed_integers() -> None:
    drawn = seeds(-1, 1000)
    assert len(set(drawn)) == 1000 and all(0 <= seed < 1 << 63 for seed in drawn)
    assert seeds(7, 2) == [7, seeds(7, 3)[1]]


async def test_a_stop_string_ends_text_and_count_and_tells_the_engine() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("Hello world", "length"))
    answer = (await ask(engine, chat(stop=["zzz", "o w"]))).json()
    assert answer["choices"][0]["message"]["content"] == "Hell"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("Hello w")
    assert engine.aborted == engine.submitted[0].seq_ids


async def test_tokens_after_a_stop_string_in_the_same_output_do_not_count() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([list(b"ab-cd")]))
    answer = (await ask(engine, chat(stop="-"))).json()
    assert (answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]) == ("ab", 3)


async def test_half_a_stop_string_at_the_end_is_text() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("abc"))
    assert (await ask(engine, chat(stop=["cd"]))).json()["choices"][0]["message"]["content"] == "abc"


async def test_stop_strings_are_not_looked_for_in_the_first_min_tokens() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("-a-b"))
    answer = (await ask(engine, chat(stop="-", min_tokens=2))).json()
    assert answer["choices"][0]["message"]["content"] == "-a"


async def test_the_text_of_a_stop_id_is_cut_and_control_tokens_have_none() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[104], [USER], [105], [33]], "stop"))
    answer = (await ask(engine, chat(stop_token_ids=[33]))).json()
    assert answer["choices"][0]["message"]["content"] == "hi"
    assert answer["usage"]["completion_tokens"] == 4


async def test_bytes_that_are_no_character_become_one_replacement() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[97], [0xF0], [0x9F], [EOS]], "stop"))
    assert (await ask(engine, chat())).json()["choices"][0]["message"]["content"] == "a\ufffd"


async def test_a_character_that_was_cut_is_left_out() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[97], [0xF0], [0x9F]], "length"))
    assert (await ask(engine, chat())).json()["choices"][0]["message"]["content"] == "a"


async def test_ids_that_the_tokenizer_does_not_know_have_no_text() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[97, 300, 98]], "length"))
    answer = (await ask(engine, chat(logprobs=True))).json()
    assert answer["choices"][0]["message"]["content"] == "ab"
    assert len(answer["choices"][0]["logprobs"]["content"]) == 3


async def test_logprobs() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("é", "length"))
    answer = (await ask(engine, chat(logprobs=True, top_logprobs=2))).json()
    first, second = answer["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("\\xc3", [0xC3], -0.5)
    assert [(top["bytes"], top["logprob"]) for top in first["top_logprobs"]] == [([0xC3], -0.5), ([0xC4], -1.5)]
    assert (second["bytes"], second["logprob"]) == ([0xA9], -1.5)
    assert engine.submitted[0].params.logprobs == 2


async def test_logprobs_without_alternatives() -> None:
    answer = (await ask(FakeEngine(), chat(logprobs=True))).json()
    assert [entry["top_logprobs"] for entry in answer["choices"][0]["logprobs"]["content"]] == [[]] * 6


async def test_unknown_fields_are_ignored_and_named() -> None:
    body = chat(guided="x", **{"bad name,\n": 1}, user="me", metadata={"a": "b"})
    answer = await ask(FakeEngine(), body)
    assert answer.headers["x-headrace-ignored"] == "guided, bad?name??, user, metadata"


async def test_unknown_fields_of_stream_options_are_named() -> None:
    answer = await ask(FakeEngine(), chat(stream=True, stream_options={"include_usage": True, "other": 1}))
    assert answer.headers["x-headrace-ignored"] == "stream_options.other"


async def test_the_header_of_ignored_fields_is_bounded() -> None:
    answer = await ask(FakeEngine(), chat(**{f"{'f' * 100}{index}": 1 for index in range(100)}))
    assert len(answer.headers["x-headrace-ignored"]) < 1000
    assert answer.headers["x-headrace-ignored"].endswith("and-84-more")


async def test_long_texts_are_tokenised_off_the_event_loop(services: Services) -> None:
    async with client_of(services) as client:
        answer = await client.post("/v1/chat/completions", json=chat("x" * 3000))
    assert answer.json()["usage"]["prompt_tokens"] == 3003


async def test_a_model_without_a_chat_template() -> None:
    async with client_of(toy_services(model=toy_model(chat_template=None))) as client:
        answer = await client.post("/v1/chat/completions", json=chat())
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_template")


async def test_too_long_a_prompt_is_refused_with_the_counts() -> None:
    engine = FakeEngine(ready=toy_ready(max_model_len=100))
    answer = await ask(engine, chat("x" * 90, max_tokens=20))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "100 tokens" in error["message"] and "93" in error["message"] and "113" in error["message"]
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat("x" * 101)),
        ("/v1/completions", {"model": "toy", "prompt": ["short", "x" * 101]}),
    ],
)
async def test_what_is_hopelessly_long_is_refused_before_it_is_encoded(path: str, body: dict[str, Any]) -> None:
    model = toy_model()
    services = toy_services(FakeEngine(ready=toy_ready(max_model_len=100)), model)
    async with client_of(services) as client:
        answer = await client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "at least 101 tokens" in error["message"]
    assert model.tokenizer.num_encodes == 0


@pytest.mark.parametrize(("num_chars", "status"), [(96, 200), (97, 400)])
async def test_the_last_token_that_fits(num_chars: int, status: int) -> None:
    engine = FakeEngine(ready=toy_ready(max_model_len=100))
    assert (await ask(engine, chat("x" * num_chars))).status_code == status
