"""Every wrong value is a 400 that names the field; what is not built is refused, what has no effect is accepted."""

from typing import Any

import httpx
import pytest

from tests.fixtures.fakes import MODEL, client_of, toy_services

HI = [{"role": "user", "content": "hi"}]
PATH = "/v1/chat/completions"


async def error_of(client: httpx.AsyncClient, body: Any, status: int = 400) -> dict[str, Any]:
    answer = await client.post(PATH, json=body)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("not_implemented_error" if status == 501 else "invalid_request_error")
    return error


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temperature", 2.1, "between 0 and 2"),
        ("temperature", -0.1, "between 0 and 2"),
        ("temperature", "hot", "float"),
        ("top_p", 1.01, "between 0 and 1"),
        ("top_p", True, "bool"),
        ("n", 0, "between 1 and 128"),
        ("n", 129, "between 1 and 128"),
        ("n", 1.5, "int"),
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", -5, "at least 1"),
        ("max_tokens", "10", "int"),
        ("max_completion_tokens", 0, "at least 1"),
        ("presence_penalty", 2.5, "between -2 and 2"),
        ("frequency_penalty", -2.5, "between -2 and 2"),
        ("seed", 1 << 63, "between"),
        ("seed", 0.5, "int"),
        ("stop", 5, "string"),
        ("stop", "", "between 1 and"),
        ("stop", ["a", "b", "c", "d", "e"], "at most 4"),
        ("stop", "x" * 1001, "between 1 and 1000"),
        ("stream", "yes", "bool"),
        ("stream_options", {"include_usage": True}, "stream"),
        ("logprobs", 1, "bool"),
        ("top_logprobs", 3, "logprobs"),
        ("top_logprobs", 21, "between 0 and 20"),
        ("logit_bias", [1], "object"),
        ("top_k", -2, "-1"),
        ("min_p", 1.5, "between 0 and 1"),
        ("repetition_penalty", 0, "between"),
        ("ignore_eos", 0, "bool"),
        ("min_tokens", -1, "between 0"),
        ("min_tokens", 5000, "between 0"),
        ("stop_token_ids", 7, "array"),
        ("messages", [], "at least one"),
        ("messages", "hi", "array"),
        ("model", None, "str"),
    ],
)
async def test_wrong_values(client: httpx.AsyncClient, field: str, value: Any, says: str) -> None:
    error = await error_of(client, {"model": MODEL, "messages": HI, field: value})
    assert error["param"] == field
    assert field in error["message"] and says in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"logit_bias": {"abc": 1}}, "logit_bias.abc"),
        ({"logit_bias": {"999": 1}}, "logit_bias.999"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5"),
        ({"logit_bias": {"²": 1}}, "logit_bias.²"),
        ({"stop_token_ids": [1, 261]}, "stop_token_ids[1]"),
        ({"stop_token_ids": [1, "x"]}, "stop_token_ids[1]"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ],
)
async def test_wrong_elements_are_named_by_their_path(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    assert (await error_of(client, {"model": MODEL, "messages": HI, **fields}))["param"] == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[1]"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "wizard", "content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": []}, "messages[1].content"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}, "y"]}, "messages[1].content[1]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": "x", "name": 5}, "messages[1].name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "messages[1].tool_calls[0].function"),
        ({"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}, "messages[1].tool_calls"),
    ],
)
async def test_wrong_messages_are_named_by_their_path(client: httpx.AsyncClient, message: Any, param: str) -> None:
    assert (await error_of(client, {"model": MODEL, "messages": [*HI, message]}))["param"] == param


@pytest.mark.parametrize("missing", ["model", "messages"])
async def test_missing_fields(client: httpx.AsyncClient, missing: str) -> None:
    body = {"model": MODEL, "messages": HI}
    del body[missing]
    error = await error_of(client, body)
    assert (error["param"], error["code"]) == (missing, "missing_required_parameter")


async def test_another_model(client: httpx.AsyncClient) -> None:
    error = await error_of(client, {"model": "gpt-9", "messages": HI}, status=404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "gpt-9" in error["message"] and MODEL in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}]),
        ("functions", [{}]),
        ("function_call", {"name": "f"}),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {}),
        ("moderation", {"model": "x"}),
        ("chat_template", "{{ messages }}"),
        ("use_beam_search", True),
        ("length_penalty", 0.5),
        ("stop_regex", "a+"),
        ("typical_p", 0.9),
        ("mirostat", 2),
        ("lora_path", "x"),
        ("custom_logit_processor", "x"),
        ("echo", True),
    ],
)
async def test_what_is_not_built_is_refused_by_name(client: httpx.AsyncClient, field: str, value: Any) -> None:
    error = await error_of(client, {"model": MODEL, "messages": HI, field: value}, status=501)
    assert error["param"].startswith(field) and error["code"] == "not_implemented"
    assert error["param"] in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "me"),
        ("metadata", {"a": "b"}),
        ("store", True),
        ("service_tier", "flex"),
        ("safety_identifier", "x"),
        ("prompt_cache_key", "x"),
        ("verbosity", "low"),
        ("reasoning_effort", "low"),
        ("prediction", {"type": "content", "content": "x"}),
        ("chat_template_kwargs.colour", None),
    ],
)
async def test_what_has_no_effect_is_told_and_refused_by_a_strict_server(field: str, value: Any) -> None:
    name, _, rest = field.partition(".")
    body = {"model": MODEL, "messages": HI, name: {rest: 1} if rest else value}
    async with client_of(toy_services()) as client:
        response = await client.post(PATH, json=body)
    assert (response.status_code, response.headers["x-headrace-ignored"]) == (200, field)
    async with client_of(toy_services(strict=True)) as client:
        error = await error_of(client, body)
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", []),
        ("tool_choice", "auto"),
        ("tool_choice", "none"),
        ("functions", []),
        ("response_format", {"type": "text"}),
        ("modalities", ["text"]),
        ("service_tier", "auto"),
        ("parallel_tool_calls", False),
        ("top_p", 0),
        ("temperature", 0),
        ("logit_bias", {}),
        ("stop", []),
        ("guided_json", None),
        ("regex", None),
        ("typical_p", 1.0),
        ("mirostat", 0),
        ("top_n_sigma", -1),
        ("bad_words", []),
        ("continue_final_message", False),
        ("add_generation_prompt", True),
    ],
)
async def test_what_changes_nothing_is_accepted_in_silence(client: httpx.AsyncClient, field: str, value: Any) -> None:
    answer = await client.post(PATH, json={"model": MODEL, "messages": HI, field: value})
    assert answer.status_code == 200, answer.text
    assert "x-headrace-ignored" not in answer.headers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": NaN}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model":"toy","messages":[{"role":"user","content":"\\ud800 "}]}',
        b'{"a":' + b"[" * 100_000,
        b"[1]",
        b'"text"',
        b"null",
    ],
)
async def test_bodies_that_are_no_request(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_number_that_is_infinite(client: httpx.AsyncClient) -> None:
    body = b'{"model":"toy","messages":[{"role":"user","content":"x"}],"temperature":1e999}'
    answer = await client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "temperature")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_content_type_that_is_not_json(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post(PATH, content=b"{}", headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_compressed_body(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert (await client.post(PATH, content=b"{}", headers=headers)).status_code == 415


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/problem+json"])
async def test_content_types_that_are_json(client: httpx.AsyncClient, kind: str) -> None:
    assert (await client.post(PATH, content=b"{}", headers={"content-type": kind})).status_code == 400
