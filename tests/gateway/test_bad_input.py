"""What is wrong with a request is told: by status, type, code, and the path of the field."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec
import pytest

from tests.fixtures.fakes import MODEL, Connection, FakeEngine, client_of, toy_app, toy_services

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
TYPE, RANGE, VALUE, MISSING = "invalid_type", "value_out_of_range", "invalid_value", "missing_required_parameter"
CONFLICT, GRAMMAR, SCHEMA, JSON = "conflicting_parameters", "invalid_grammar", "invalid_json_schema", "invalid_json"
TOO_LONG, NOT_BUILT, CONTENT = "context_length_exceeded", "not_implemented", "unsupported_content"
MEDIA = "unsupported_media_type"
MAX_BODY = 1 << 18
JSON_TYPE = {"content-type": "application/json"}
HI = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
GOOD = {
    CHAT: {"model": MODEL, "messages": [HI]},
    COMPLETIONS: {"model": MODEL, "prompt": "Once"},
    EMBEDDINGS: {"model": MODEL, "input": "Once"},
    TOKENIZE: {"prompt": "Once"},
    DETOKENIZE: {"tokens": [72]},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class Bad:
    path: str
    body: bytes
    status: int
    param: str | None
    code: str | None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON_TYPE))

    @property
    def name(self) -> str:
        return f"{self.method} {self.path} {self.body[:70]!r} {self.code}"


def raw(path: str, body: bytes, param: str | None, code: str | None, status: int = 400, **headers: str) -> Bad:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return Bad(path, body, status, param, code, headers={**JSON_TYPE, **given})


def bad(path: str, changes: dict[str, Any], param: str | None, code: str | None, status: int = 400) -> Bad:
    """A good request, changed."""
    return Bad(path, msgspec.json.encode({**GOOD[path], **changes}), status, param, code)


def chat(param: str | None, code: str | None, status: int = 400, **changes: Any) -> Bad:
    return bad(CHAT, changes, param, code, status)


def completion(param: str | None, code: str | None, status: int = 400, **changes: Any) -> Bad:
    return bad(COMPLETIONS, changes, param, code, status)


def messages(where: str, code: str | None, *given: Any, status: int = 400) -> Bad:
    return chat(f"messages{where}", code, status, messages=list(given))


def part(where: str, code: str, given: Any) -> Bad:
    return messages(f"[0].content[0]{where}", code, {"role": "user", "content": [given]})


def tool(where: str, code: str | None, given: Any, status: int = 400) -> Bad:
    return chat(f"tools[0]{where}", code, status, tools=[given])


def nested(depth: int) -> bytes:
    return b'{"model": "toy", "messages": ' + b"[" * depth + b"]" * depth + b"}"


BODIES = [
    raw(path, body, None, JSON)
    for path in GOOD
    for body in (
        *(
            b"",
            b" ",
            b"{",
            b"{]",
            b"nul",
            b"'a'",
            b'{"model": "toy",}',
            b'{"model" "toy"}',
            b'{"model": "toy", "messages": [], "prompt": "a", "input": "a", "tokens": []} x',
        ),
        *(b"\xff\xfe{}", b'{"model": "\xff"}', b'{"model": "toy\n"}', b'{"model": NaN}', b'{"model": Infinity}'),
        *(b'{"model": 01}', b'{"model": "\\x"}', b'{"model": "\\ud800"}', b"\xef\xbb\xbf{}", b'{"a": "\x00"}'),
    )
]
TOPS = [raw(path, body, None, TYPE) for path in GOOD for body in (b"null", b"[]", b'"a"', b"1", b"true", b"1e5")]
MISSING_FIELDS = [
    raw(CHAT, b"{}", "model", MISSING),
    raw(CHAT, b'{"model": "toy"}', "messages", MISSING),
    raw(CHAT, b'{"messages": [{"role": "user", "content": "Hi"}]}', "model", MISSING),
    raw(COMPLETIONS, b'{"model": "toy"}', "prompt", MISSING),
    raw(EMBEDDINGS, b'{"model": "toy"}', "input", MISSING),
    raw(DETOKENIZE, b"{}", "tokens", MISSING),
    raw(TOKENIZE, b"{}", "prompt", MISSING),
]
TYPES = [
    bad(path, {name: value}, name, TYPE)
    for path in (CHAT, COMPLETIONS)
    for name, value in {
        "model": 5,
        "max_tokens": "5",
        "temperature": "hot",
        "top_p": [1],
        "n": 1.5,
        "stop": 7,
        "seed": "x",
        "presence_penalty": True,
        "frequency_penalty": {},
        "logit_bias": [1],
        "stream": "yes",
        "stream_options": True,
        "top_k": 1.5,
        "min_p": "0",
        "repetition_penalty": "1",
        "ignore_eos": 1,
        "min_tokens": "1",
        "stop_token_ids": 3,
        "allowed_token_ids": "3",
        "bad_words": "word",
        "prompt_logprobs": True,
        "truncate_prompt_tokens": "all",
        "truncation_side": 5,
        "include_stop_str_in_output": "no",
        "skip_special_tokens": 0,
        "return_token_ids": 1,
        "cache_salt": 5,
        "priority": "high",
        "response_format": "json",
        "structured_outputs": "json",
        "guided_regex": 5,
        "guided_choice": "a",
        "guided_grammar": ["start: a"],
    }.items()
]
CHAT_TYPES = [
    chat(name, TYPE, **{name: value})
    for name, value in {
        "messages": "Hi",
        "max_completion_tokens": "5",
        "logprobs": 3,
        "top_logprobs": "5",
        "tools": {},
        "tool_choice": 5,
        "parallel_tool_calls": "no",
        "reasoning_effort": 5,
        "include_reasoning": "no",
        "chat_template_kwargs": [],
        "add_generation_prompt": "yes",
        "continue_final_message": "yes",
    }.items()
]
COMPLETION_TYPES = [
    completion(name, TYPE, **{name: value})
    for name, value in {
        "prompt": 5,
        "logprobs": True,
        "echo": "yes",
        "best_of": "2",
        "suffix": 5,
        "add_special_tokens": "no",
    }.items()
]
RANGES = [
    bad(path, {name: value}, name, RANGE)
    for path in (CHAT, COMPLETIONS)
    for name, value in [
        *(("temperature", -0.1), ("temperature", 2.1), ("top_p", -0.1), ("top_p", 1.1), ("n", 0), ("n", 129)),
        *(("presence_penalty", 2.5), ("frequency_penalty", -2.5), ("repetition_penalty", 0), ("top_k", -2)),
        *(("min_p", 1.5), ("min_tokens", -1), ("min_tokens", 5000), ("max_tokens", -1), ("prompt_logprobs", 21)),
        *(("truncate_prompt_tokens", 0), ("truncate_prompt_tokens", -2), ("cache_salt", ""), ("priority", 1 << 21)),
        *(("cache_salt", "x" * 1025), ("seed", 1 << 63), ("allowed_token_ids", []), ("bad_words", ["a"] * 257)),
        *(("stop", ["a", "b", "c", "d", "e"]), ("stop", ""), ("stop", "x" * 1001), ("stop_token_ids", [1] * 129)),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
    ]
]
ELEMENTS = [
    chat("stop[1]", TYPE, stop=["a", 5]),
    chat("stop[1]", RANGE, stop=["a", ""]),
    chat("logit_bias.5", RANGE, logit_bias={"5": 101}),
    chat("logit_bias.5", TYPE, logit_bias={"5": "1"}),
    chat("logit_bias.5", TYPE, logit_bias={"5": True}),
    chat("logit_bias.x", TYPE, logit_bias={"x": 1}),
    chat("logit_bias.-1", TYPE, logit_bias={"-1": 1}),
    chat("logit_bias.999", RANGE, logit_bias={"999": 1}),
    chat("stop_token_ids[0]", RANGE, stop_token_ids=[999]),
    chat("stop_token_ids[1]", TYPE, stop_token_ids=[1, "2"]),
    chat("stop_token_ids[0]", TYPE, stop_token_ids=[True]),
    chat("allowed_token_ids[0]", RANGE, allowed_token_ids=[-1]),
    chat("allowed_token_ids[0]", TYPE, allowed_token_ids=[1.5]),
    chat("bad_words[0]", TYPE, bad_words=[5]),
    chat("bad_words[1]", RANGE, bad_words=["a", ""]),
    chat("stream_options.include_usage", TYPE, stream=True, stream_options={"include_usage": "yes"}),
    completion("prompt", RANGE, prompt=[]),
    completion("prompt", RANGE, prompt=""),
    completion("prompt", RANGE, prompt=[[]]),
    completion("prompt", RANGE, prompt=["a", ""]),
    completion("prompt", TYPE, prompt=None),
    completion("prompt", TYPE, prompt={}),
    completion("prompt[1]", TYPE, prompt=["a", 5]),
    completion("prompt[1]", TYPE, prompt=[72, "a"]),
    completion("prompt[0]", RANGE, prompt=[261]),
    completion("prompt[1]", RANGE, prompt=[72, -1]),
    completion("prompt[0]", TYPE, prompt=[1.5]),
    completion("prompt[0]", TYPE, prompt=[None]),
    completion("prompt[1][0]", RANGE, prompt=[[72], [999]]),
    completion("prompt[1]", TYPE, prompt=[[72], 72]),
    completion("prompt", RANGE, prompt=["a"] * 3, n=100),
    bad(EMBEDDINGS, {"input": []}, "input", RANGE),
    bad(EMBEDDINGS, {"input": ""}, "input", RANGE),
    bad(EMBEDDINGS, {"input": 5}, "input", TYPE),
    bad(EMBEDDINGS, {"input": ["a", 5]}, "input[1]", TYPE),
    bad(EMBEDDINGS, {"input": [[999]]}, "input[0][0]", RANGE),
    bad(EMBEDDINGS, {"dimensions": 0}, "dimensions", RANGE),
    bad(EMBEDDINGS, {"encoding_format": "hex"}, "encoding_format", VALUE),
    bad(EMBEDDINGS, {"input": "x" * 5000}, "input", TOO_LONG),
    bad(TOKENIZE, {"prompt": None, "messages": []}, "messages", RANGE),
    bad(TOKENIZE, {"messages": [HI]}, "prompt", MISSING),
    bad(TOKENIZE, {"tools": [WEATHER]}, "tools", CONFLICT),
    bad(TOKENIZE, {"prompt": None, "messages": [{"role": "user"}]}, "messages[0].content", TYPE),
    bad(TOKENIZE, {"prompt": 5}, "prompt", TYPE),
    bad(TOKENIZE, {"model": "other"}, "model", "model_not_found", 404),
    bad(DETOKENIZE, {"tokens": 5}, "tokens", TYPE),
    bad(DETOKENIZE, {"tokens": ["5"]}, "tokens[0]", TYPE),
    bad(DETOKENIZE, {"tokens": [True]}, "tokens[0]", TYPE),
    bad(DETOKENIZE, {"tokens": [5, 261]}, "tokens[1]", RANGE),
    bad(DETOKENIZE, {"tokens": [-1]}, "tokens[0]", RANGE),
]
TOGETHER = [
    chat("stream_options", CONFLICT, stream_options={"include_usage": True}),
    chat("stream_options", CONFLICT, stream=False, stream_options={}),
    chat("top_logprobs", CONFLICT, top_logprobs=3),
    chat("top_logprobs", RANGE, logprobs=True, top_logprobs=21),
    chat("max_tokens", RANGE, max_tokens=0),
    chat("max_completion_tokens", RANGE, max_completion_tokens=0),
    chat("min_tokens", RANGE, min_tokens=5, max_tokens=4),
    chat("messages", TOO_LONG, max_tokens=4096),
    chat("max_completion_tokens", TOO_LONG, max_completion_tokens=1 << 40),
    messages("", TOO_LONG, {"role": "user", "content": "x" * 5000}),
    chat("prompt_logprobs", CONFLICT, stream=True, prompt_logprobs=1),
    completion("max_tokens", TOO_LONG, max_tokens=5000),
    completion("prompt", TOO_LONG, prompt="x" * 5000),
    completion("prompt", TOO_LONG, prompt=[72] * 5000),
    completion("prompt_logprobs", CONFLICT, stream=True, prompt_logprobs=1),
    completion("logprobs", RANGE, logprobs=21),
    completion("best_of", RANGE, n=3, best_of=2),
    completion("best_of", RANGE, best_of=0),
    completion("best_of", CONFLICT, best_of=2, stream=True),
    completion("suffix", "unsupported_parameter", suffix="end"),
    chat("continue_final_message", VALUE, continue_final_message=True),
    chat(
        "continue_final_message",
        CONFLICT,
        messages=[HI, REPLY],
        continue_final_message=True,
        add_generation_prompt=True,
    ),
    chat("truncation_side", VALUE, truncation_side="middle"),
    chat("reasoning_effort", VALUE, reasoning_effort="extreme"),
    *[
        chat(f"chat_template_kwargs.{name}", CONFLICT, chat_template_kwargs={name: 1})
        for name in ("messages", "tools", "add_generation_prompt", "continue_final_message")
    ],
    *[
        chat(name, CONFLICT, response_format={"type": "json_object"}, **{name: value})
        for name, value in {"allowed_token_ids": [72], "min_tokens": 2, "ignore_eos": True}.items()
    ],
]
MESSAGES = [
    messages("", RANGE),
    messages("[0]", TYPE, "Hi"),
    messages("[0]", TYPE, None),
    messages("[1]", TYPE, HI, 5),
    messages("[0].role", MISSING, {"content": "Hi"}),
    messages("[0].role", TYPE, {"role": 5, "content": "Hi"}),
    messages("[0].role", VALUE, {"role": "wizard", "content": "Hi"}),
    messages("[0].role", VALUE, {"role": "function", "name": "f", "content": "Hi"}),
    messages("[0].role", VALUE, {"role": "", "content": "Hi"}),
    messages("[0].content", TYPE, {"role": "user"}),
    messages("[0].content", TYPE, {"role": "user", "content": None}),
    messages("[0].content", TYPE, {"role": "user", "content": []}),
    messages("[0].content", TYPE, {"role": "user", "content": {}}),
    messages("[0].content", TYPE, {"role": "user", "content": 5}),
    messages("[0].content", TYPE, {"role": "assistant"}),
    messages("[0].content", TYPE, {"role": "assistant", "tool_calls": []}),
    messages("[0].name", TYPE, {**HI, "name": 5}),
    messages("[0].tool_calls", None, {**HI, "tool_calls": [{}]}),
    messages("[0].tool_calls", TYPE, {**REPLY, "tool_calls": {}}),
    messages("[0].tool_calls[0]", TYPE, {**REPLY, "tool_calls": ["a"]}),
    messages("[0].tool_calls[0].id", MISSING, {**REPLY, "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}),
    messages("[0].tool_calls[0].function", MISSING, {**REPLY, "tool_calls": [{"id": "a"}]}),
    messages("[0].tool_calls[0].function.name", MISSING, {**REPLY, "tool_calls": [{"id": "a", "function": {}}]}),
    messages(
        *("[0].tool_calls[0].function.arguments", TYPE),
        {**REPLY, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]},
    ),
    messages(
        *("[0].tool_calls[0].type", VALUE),
        {**REPLY, "tool_calls": [{"id": "a", "type": "custom", "function": {"name": "f", "arguments": ""}}]},
    ),
    messages("[1].tool_call_id", MISSING, HI, {"role": "tool", "content": "5"}),
    messages("[1].tool_call_id", TYPE, HI, {"role": "tool", "content": "5", "tool_call_id": 5}),
    messages("[0].reasoning", TYPE, {**REPLY, "reasoning": 5}),
    messages("[0].function_call", NOT_BUILT, {**REPLY, "function_call": {"name": "f"}}, status=501),
    messages("[0].audio", NOT_BUILT, {**REPLY, "audio": []}, status=501),
    messages("[0].audio", NOT_BUILT, {**REPLY, "audio": {"id": "a"}}, status=501),
    part("", TYPE, "text"),
    part("", TYPE, None),
    part(".type", MISSING, {"text": "Hi"}),
    part(".type", TYPE, {"type": 5, "text": "Hi"}),
    part(".text", MISSING, {"type": "text"}),
    part(".text", TYPE, {"type": "text", "text": 5}),
    part(".refusal", MISSING, {"type": "refusal"}),
    part(".type", CONTENT, {"type": "image_url", "image_url": {"url": "data:,"}}),
    part(".type", CONTENT, {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
    part(".type", CONTENT, {"type": "file", "file": {"file_id": "a"}}),
    part(".type", CONTENT, {"type": "video_url", "video_url": {"url": "data:,"}}),
]
TOOLS = [
    tool("", TYPE, "weather"),
    tool(".type", MISSING, {"function": {"name": "f"}}),
    tool(".type", None, {"type": "web", "function": {"name": "f"}}),
    tool(".type", NOT_BUILT, {"type": "custom", "custom": {"name": "f"}}, 501),
    tool(".function", MISSING, {"type": "function"}),
    tool(".function", TYPE, {"type": "function", "function": "f"}),
    tool(".function.name", MISSING, {"type": "function", "function": {}}),
    tool(".function.name", VALUE, {"type": "function", "function": {"name": ""}}),
    tool(".function.name", VALUE, {"type": "function", "function": {"name": "a b"}}),
    tool(".function.name", VALUE, {"type": "function", "function": {"name": "x" * 65}}),
    tool(".function.parameters", TYPE, {"type": "function", "function": {"name": "f", "parameters": "{}"}}),
    tool(".function.strict", TYPE, {"type": "function", "function": {"name": "f", "strict": "yes"}}),
    tool(".function.description", TYPE, {"type": "function", "function": {"name": "f", "description": 5}}),
    chat("tools[1].function.name", VALUE, tools=[WEATHER, WEATHER]),
    chat("tools", RANGE, tools=[WEATHER] * 129),
    chat("tool_choice", VALUE, tools=[WEATHER], tool_choice="always"),
    chat("tool_choice", VALUE, tool_choice="required"),
    chat("tool_choice", VALUE, tools=[WEATHER], tool_choice={}),
    chat("tool_choice", VALUE, tools=[WEATHER], tool_choice={"type": "function", "function": {}}),
    chat("tool_choice", VALUE, tools=[WEATHER], tool_choice={"type": "web", "function": {"name": "weather"}}),
    chat("tool_choice.type", NOT_BUILT, 501, tools=[WEATHER], tool_choice={"type": "custom", "custom": {"name": "f"}}),
    chat(
        *("tool_choice.function.name", VALUE),
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "other"}},
    ),
    chat("tool_choice.allowed_tools", VALUE, tools=[WEATHER], tool_choice={"type": "allowed_tools"}),
    chat(
        *("tool_choice.allowed_tools.tools", RANGE),
        tools=[WEATHER],
        tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
    ),
]
NOT_BUILT_FIELDS = [
    chat(name, NOT_BUILT, 501, **{name: value})
    for name, value in {
        "functions": [{"name": "f"}],
        "function_call": "auto",
        "audio": {"voice": "alloy", "format": "wav"},
        "modalities": ["text", "audio"],
        "web_search_options": {},
        "chat_template": "{{ messages }}",
        "best_of": 2,
    }.items()
]


def response_format(where: str, code: str, given: Any, status: int = 400) -> Bad:
    return chat(f"response_format{where}", code, status, response_format=given)


def schema(where: str, given: Any, code: str = SCHEMA) -> Bad:
    format = {"type": "json_schema", "json_schema": {"name": "a", "schema": given}}
    return chat(f"response_format.json_schema.schema{where}", code, response_format=format)


SHAPES = [
    response_format("", TYPE, []),
    response_format(".type", VALUE, {}),
    response_format(".type", VALUE, {"type": "xml"}),
    response_format(".type", NOT_BUILT, {"type": "structural_tag"}, 501),
    response_format(".json_schema", MISSING, {"type": "json_schema"}),
    response_format(".json_schema", MISSING, {"type": "json_schema", "json_schema": "a"}),
    response_format(".json_schema.name", MISSING, {"type": "json_schema", "json_schema": {"schema": {}}}),
    response_format(".json_schema.schema", MISSING, {"type": "json_schema", "json_schema": {"name": "a"}}),
    response_format(
        ".json_schema.strict", TYPE, {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": 1}}
    ),
    schema("", 5, TYPE),
    schema("", False),
    schema(".type", {"type": "thing"}),
    schema(".properties.a.type", {"type": "object", "properties": {"a": {"type": "thing"}}}),
    schema(".$ref", {"$ref": "#/$defs/missing"}),
    schema(".items.type", {"type": "array", "items": {"type": 5}}),
    chat("structured_outputs.xml", VALUE, structured_outputs={"xml": "a"}),
    chat("structured_outputs.structural_tag", NOT_BUILT, 501, structured_outputs={"structural_tag": "a"}),
    chat("structured_outputs.regex", TYPE, structured_outputs={"regex": ""}),
    chat("structured_outputs.regex", TYPE, structured_outputs={"regex": False}),
    chat("structured_outputs.json_object", TYPE, structured_outputs={"json_object": 1}),
    chat("structured_outputs.regex", GRAMMAR, structured_outputs={"regex": "(a"}),
    chat("structured_outputs.choice", TYPE, structured_outputs={"choice": []}),
    chat("structured_outputs.choice", TYPE, structured_outputs={"choice": ["a", 5]}),
    chat("structured_outputs.choice", TYPE, structured_outputs={"choice": [""]}),
    chat("structured_outputs.choice", RANGE, structured_outputs={"choice": ["a"] * 1025}),
    chat("structured_outputs.grammar", GRAMMAR, structured_outputs={"grammar": "start: missing"}),
    chat("structured_outputs.grammar", GRAMMAR, structured_outputs={"grammar": "nonsense ]["}),
    chat("structured_outputs.json", SCHEMA, structured_outputs={"json": "{"}),
    chat("structured_outputs.json", TYPE, structured_outputs={"json": 5}),
    chat("structured_outputs.regex", CONFLICT, structured_outputs={"choice": ["a"], "regex": "a"}),
    chat("guided_regex", GRAMMAR, guided_regex="[z-a]"),
    chat("guided_json", SCHEMA, guided_json="not json"),
    chat("guided_json", TYPE, guided_json=[1]),
    chat("guided_regex", CONFLICT, guided_json={}, guided_regex="a"),
    chat("guided_regex", CONFLICT, response_format={"type": "json_object"}, guided_regex="a"),
    completion("guided_grammar", GRAMMAR, guided_grammar="root ::= missing"),
]
NUMBERS = [
    raw(CHAT, b'{"model": "toy", "messages": [], "temperature": 1e999}', "temperature", TYPE),
    raw(CHAT, b'{"model": "toy", "messages": [], "temperature": -1e999}', "temperature", TYPE),
    raw(CHAT, b'{"model": "toy", "messages": [], "seed": 1e30}', "seed", TYPE),
    raw(CHAT, msgspec.json.encode(GOOD[CHAT])[:-1] + b', "seed": ' + b"9" * 40 + b"}", "seed", RANGE),
    raw(CHAT, b'{"model": "toy", "messages": [], "n": -}', None, JSON),
    raw(COMPLETIONS, b'{"model": "toy", "prompt": [' + b"9" * 400 + b"]}", "prompt[0]", RANGE),
]
STRANGE = [
    raw(CHAT, nested(100_000), None, JSON),
    raw(CHAT, nested(500), "messages[0]", TYPE),
    raw(COMPLETIONS, b'{"model": "toy", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, JSON),
    raw(CHAT, b'{"model": "toy", "messages": [], "unknown": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001, None, JSON),
    raw(CHAT, b'{"model": "toy", "model": "other", "messages": []}', "model", "model_not_found", 404),
    raw(CHAT, b'{"model": "toy", "messages": [], "n": 1, "n": 0, "messages": [1]}', "n", RANGE),
    raw(CHAT, b'{"model": "toy", "messages": [{"role": "user", "content": "\\udc00"}]}', None, JSON),
    raw(CHAT, b'{"model": "toy", "messages": [{"role": "user", "content": "\\u12"}]}', None, JSON),
    raw(CHAT, json.dumps(GOOD[CHAT]).encode("utf-16"), None, JSON),
    raw(CHAT, json.dumps(GOOD[CHAT]).encode("utf-32-le"), None, JSON),
    raw(CHAT, b"model=toy&messages=Hi", None, MEDIA, 415, content_type="application/x-www-form-urlencoded"),
    raw(CHAT, b"{}", None, MEDIA, 415, content_type="text/plain"),
    raw(CHAT, b"{}", None, MEDIA, 415, content_type=""),
    raw(CHAT, b"{}", None, MEDIA, 415, content_type="multipart/form-data; boundary=a"),
    raw(CHAT, b"{}", None, MEDIA, 415, content_type="application/jsonx"),
    raw(CHAT, b"\x1f\x8b\x08", None, MEDIA, 415, content_encoding="gzip"),
    raw(CHAT, b"{}", None, MEDIA, 415, content_encoding="br"),
    raw(CHAT, b"{}", None, "request_too_large", 413, content_length="99999999999"),
    raw(CHAT, b'{"model": "' + b"x" * MAX_BODY + b'"}', None, "request_too_large", 413),
    raw(TOKENIZE, b'{"prompt": "' + b"x" * MAX_BODY + b'"}', None, "request_too_large", 413),
]
MODELS = [
    bad(path, {"model": name}, "model", "model_not_found", 404)
    for path in (CHAT, COMPLETIONS, EMBEDDINGS)
    for name in ("", "other", "toy2", "TOY", "toy\x00", "../toy", "\U0001f600", "x" * 5000)
]
RENDERED = [
    replace(each, path=each.path + "/render")
    for each in (*RANGES, *MESSAGES, *SHAPES)
    if each.path in (CHAT, COMPLETIONS)
]


def path(path: str, code: str, status: int, method: str = "GET", param: str | None = None) -> Bad:
    return Bad(path, b"", status, param, code, method, {})


PATHS = [
    *[path(each, "not_found", 404) for each in ("/nothing", "/v1", "/v2/models", "/v1/chat", "/docs/", "/%00")],
    *[path(each, "not_found", 404, "POST") for each in (CHAT + "/", "/" + COMPLETIONS, "/V1/completions")],
    *[
        path(f"/v1/models/{name}", "model_not_found", 404, param="model")
        for name in ("", "other", "a/b", "%00", "..%2f")
    ],
    *[path(each, "method_not_allowed", 405) for each in (*GOOD, CHAT + "/render", COMPLETIONS + "/render")],
    *[path(CHAT, "method_not_allowed", 405, method) for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")],
    *[path(each, "method_not_allowed", 405, "POST") for each in ("/v1/models", "/health", "/metrics", "/docs")],
    path("/v1/models/toy", "method_not_allowed", 405, "DELETE"),
    path("/v1/responses/resp_1", "method_not_allowed", 405, "PATCH"),
]
ALL = [
    *(
        *BODIES,
        *TOPS,
        *MISSING_FIELDS,
        *TYPES,
        *CHAT_TYPES,
        *COMPLETION_TYPES,
        *RANGES,
        *ELEMENTS,
        *TOGETHER,
        *MESSAGES,
    ),
    *(*TOOLS, *NOT_BUILT_FIELDS, *SHAPES, *NUMBERS, *STRANGE, *MODELS, *RENDERED, *PATHS),
]


async def send(client: httpx.AsyncClient, bad: Bad) -> httpx.Response:
    return await client.request(bad.method, bad.path, content=bad.body, headers=bad.headers)


@pytest.mark.parametrize("bad", ALL, ids=lambda bad: bad.name)
async def test_is_told_what_is_wrong(bad: Bad) -> None:
    async with client_of(toy_services(max_body_bytes=MAX_BODY)) as client:
        answer = await send(client, bad)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (bad.status, bad.param, bad.code), error
    assert error["type"] == ("not_implemented_error" if bad.status == 501 else "invalid_request_error")
    assert 0 < len(error["message"]) < 1500


async def test_after_all_of_it_the_server_still_answers() -> None:
    engine = FakeEngine()
    services = toy_services(engine, max_body_bytes=MAX_BODY)
    async with client_of(services) as client:
        for bad in ALL:
            assert (await send(client, bad)).status_code == bad.status
        assert engine.submitted == []
        for path, body in GOOD.items():
            assert (await client.post(path, json=body)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("POST", "/openapi.json", {"GET", "HEAD"}),
        ("POST", "/v1/responses/resp_1", {"GET", "HEAD", "DELETE"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(method: str, path: str, allowed: set[str]) -> None:
    async with client_of(toy_services()) as client:
        answer = await client.request(method, path)
    assert answer.status_code == 405 and set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("sent", [b"", b'{"model": "toy", "messages": [', msgspec.json.encode(GOOD[CHAT])])
async def test_a_client_that_leaves_before_its_body_is_whole_starts_nothing(sent: bytes) -> None:
    engine = FakeEngine()
    connection = Connection(toy_app(engine), "POST", CHAT, JSON_TYPE)
    connection.send_body(sent, more=True)
    connection.leave()
    await connection.end()
    assert connection.status == 499 and engine.submitted == []


@pytest.mark.parametrize("cut", [1, 20, 40])
async def test_a_body_that_is_cut_is_not_json(cut: int) -> None:
    connection = Connection(toy_app(), "POST", CHAT, JSON_TYPE)
    connection.send_body(msgspec.json.encode(GOOD[CHAT])[:cut])
    await connection.end()
    assert connection.status == 400 and msgspec.json.decode(connection.body)["error"]["code"] == JSON


async def test_a_body_that_grows_too_large_is_refused_before_its_end() -> None:
    connection = Connection(toy_app(max_body_bytes=100), "POST", CHAT, JSON_TYPE)
    connection.send_body(b" " * 101, more=True)
    await connection.end()
    assert connection.status == 413 and connection.headers["connection"] == "close"


async def test_of_keys_that_are_given_twice_the_last_counts() -> None:
    body = b'{"model": "other", "model": "toy", "prompt": "a", "n": 0, "n": 2}'
    async with client_of(toy_services()) as client:
        answer = await client.post(COMPLETIONS, content=body, headers=JSON_TYPE)
    assert answer.status_code == 200 and len(answer.json()["choices"]) == 2


async def test_every_character_can_be_chosen() -> None:
    choices = [chr(code) for code in [*range(1, 0x300), 0x2028, 0xFEFF, 0xFFFF, 0x1F600]]
    body = {**GOOD[COMPLETIONS], "guided_choice": choices}
    async with client_of(toy_services()) as client:
        assert (await client.post(COMPLETIONS, json=body)).status_code == 200


def test_the_table_is_large() -> None:
    assert len({(bad.method, bad.path, bad.body, *bad.headers.items()) for bad in ALL}) >= 600
