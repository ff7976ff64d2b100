"""What each path takes and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway import embeddings, openai
from gateway.chat_web import types as chat_web
from gateway.chatpage.files import CHAT_PAGE
from gateway.dashboard import types as dashboard
from gateway.dashboard.files import LIVE_PAGE
from gateway.engines.profiles import MAX_STEPS, MAX_TIMEOUT_S
from gateway.http.page_files import PageFolder
from gateway.messages import types as anthropic
from gateway.openapi import schemas
from gateway.openapi.fields.forms import Schema, either
from gateway.responses import types as responses
from gateway.rolling import types as rolling
from gateway.rolling.settings import ReloadOptions
from gateway.roseinfer import generate
from gateway.timeline.store import Timeline

MODEL = "MODEL"  # in examples; the document has the name of the model that is served

_BODY = (400, 404, 408, 413, 415, 500, 501, 503)
_GENERATES = (*_BODY, 429, 504)
_HELLO = [{"role": "user", "content": "Say hello."}]
_WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_ABOUT_WEATHER = "The weather of a city."
_COLOURS = {"type": "object", "properties": {"colours": {"type": "array", "items": {"type": "string"}}}}
_RESPONSES_EVENTS = (
    *(responses.ResponseEvent, responses.ItemEvent, responses.PartEvent, responses.TextEvent),
    *(responses.ArgumentsEvent, responses.ErrorEvent),
)

Examples = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    tag: str
    summary: str
    answer: type[Any] | str  # str: a media type of text
    body: type[Any] | None = None
    events: tuple[type[Any], ...] = ()  # of a stream
    tells_done: bool = False  # a stream ends with [DONE] instead of JSON
    errors: tuple[int, ...] = (500,)
    examples: Examples = field(default_factory=dict)
    parameters: tuple[Schema, ...] = ()
    generates: bool = False  # its answer has a seed, and can be explained
    streams: str = ""  # the media type of a stream that is no events
    headers: tuple[str, ...] = ()  # of its answer alone
    own_id: str = ""  # where another path would have the same

    @property
    def id(self) -> str:
        if self.own_id:
            return self.own_id
        words = self.path.removeprefix("/v1").replace("{", "").replace("}", "").strip("/").replace("/", "_")
        return f"{self.method}_{words or 'page'}"


def _in_path(name: str, description: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def _part_of(page: PageFolder) -> Schema:
    return {**_in_path("file", "Named by the page."), "schema": {"type": "string", "enum": sorted(page.parts)}}


def _in_query(name: str, description: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_ID = _in_path("id", "Of a kept response.")
_ORDER = _in_query("order", "desc: the newest first.", {"enum": ["asc", "desc"], "default": "desc"})
_LIMIT = _in_query("limit", "Most items.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20})
_AFTER = _in_query("after", "The items behind this one.", {"type": "string"})
_STEPS = _in_query("steps", "How many.", {"type": "integer", "minimum": 1, "maximum": MAX_STEPS, "default": 20})
_TIMEOUT = _in_query(
    "timeout_s",
    "Seconds after which the steps that there were are enough.",
    {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S, "default": 60},
)
_ENGINE = _in_path("engine", "Its number, from 0.")
_FORCE = _in_query("force", "Also the last one that serves.", {"type": "boolean", "default": False})
_LINES = "application/x-ndjson"
_CHANGES = (403, 404, 409, 500, 503)
_STREAM = _in_query("stream", "true is not built.", either({"const": "false"}))

_CHAT_EXAMPLES: Examples = {
    "A question": {"model": MODEL, "messages": _HELLO, "max_tokens": 16},
    "A stream": {
        "model": MODEL,
        "messages": _HELLO,
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "A tool": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Weather in Oslo?"}],
        "max_tokens": 64,
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": _ABOUT_WEATHER, "parameters": _WEATHER},
            }
        ],
    },
    "An answer in JSON": {
        "model": MODEL,
        "messages": _HELLO,
        "max_tokens": 64,
        "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "colours", "schema": _COLOURS}},
    },
}
_COMPLETION_EXAMPLES: Examples = {
    "A text": {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 16},
    "Two at once": {"model": MODEL, "prompt": ["One,", "Two,"], "max_tokens": 8, "temperature": 0},
    "A text, scored": {"model": MODEL, "prompt": "To be or not", "max_tokens": 0, "echo": True, "logprobs": 1},
}

CHAT = (
    Operation(
        *("post", "/v1/chat/completions", "Chat", "The next message of a conversation", schemas.ChatCompletion),
        body=openai.ChatRequest,
        events=(schemas.ChatCompletionChunk,),
        tells_done=True,
        errors=_GENERATES,
        examples=_CHAT_EXAMPLES,
        generates=True,
    ),
    Operation(
        *("post", "/v1/chat/completions/render", "Chat", "What would run: prompt, parameters, grammar"),
        answer=openai.Rendered,
        body=openai.ChatRequest,
        errors=_BODY,
        examples={"A question": _CHAT_EXAMPLES["A question"]},
    ),
)
COMPLETIONS = (
    Operation(
        *("post", "/v1/completions", "Completions", "What follows a text", schemas.Completion),
        body=openai.CompletionRequest,
        events=(schemas.Completion,),
        tells_done=True,
        errors=_GENERATES,
        examples=_COMPLETION_EXAMPLES,
        generates=True,
    ),
    Operation(
        *("post", "/v1/completions/render", "Completions", "What would run", openai.Rendered),
        body=openai.CompletionRequest,
        errors=_BODY,
        examples={"A text": _COMPLETION_EXAMPLES["A text"]},
    ),
)
RESPONSES = (
    Operation(
        *("post", "/v1/responses", "Responses", "A response to text or items", responses.Response),
        body=responses.ResponseRequest,
        events=_RESPONSES_EVENTS,
        errors=(*_GENERATES, 409),
        examples={
            "A question": {"model": MODEL, "input": "Say hello.", "max_output_tokens": 16},
            "A stream": {"model": MODEL, "input": "Say hello.", "max_output_tokens": 16, "stream": True},
        },
        generates=True,
    ),
    Operation(
        *("post", "/v1/responses/input_tokens", "Responses", "As many tokens as the request's prompt would have"),
        answer=responses.InputTokens,
        body=responses.ResponseRequest,
        errors=_BODY,
        examples={"A question": {"model": MODEL, "input": "Say hello."}},
    ),
    Operation("post", "/v1/responses/compact", "Responses", "Not built", responses.Response, errors=(500, 501)),
    Operation(
        *("get", "/v1/responses/{id}", "Responses", "A kept response", responses.Response),
        errors=(404, 500, 501),
        parameters=(_ID, _STREAM),
    ),
    Operation(
        *("delete", "/v1/responses/{id}", "Responses", "It is kept no longer", responses.Deleted),
        errors=(404, 500),
        parameters=(_ID,),
    ),
    Operation(
        *("post", "/v1/responses/{id}/cancel", "Responses", "Ends one that runs in the background"),
        answer=responses.Response,
        errors=(400, 404, 500),
        parameters=(_ID,),
    ),
    Operation(
        *("get", "/v1/responses/{id}/input_items", "Responses", "What it answered", responses.ItemList),
        errors=(400, 404, 500),
        parameters=(_ID, _ORDER, _LIMIT, _AFTER),
    ),
)
MESSAGES = (
    Operation(
        *("post", "/v1/messages", "Messages", "The next message, in Anthropic's form", anthropic.Message),
        body=anthropic.MessagesRequest,
        events=(schemas.MessageEvent, schemas.MessageDelta),
        errors=_GENERATES,
        examples={"A question": {"model": MODEL, "max_tokens": 16, "messages": _HELLO}},
        generates=True,
    ),
    Operation(
        *("post", "/v1/messages/count_tokens", "Messages", "As many tokens as the request's prompt would have"),
        answer=anthropic.TokenCount,
        body=anthropic.Conversation,
        errors=_BODY,
        examples={"A question": {"model": MODEL, "messages": _HELLO}},
    ),
)
CHAT_WEB = (
    Operation(
        *("post", "/chat/completions", "Chat", "The next message, in nanochat's form: always a stream"),
        answer="text/event-stream",
        body=chat_web.ChatRequest,
        events=(chat_web.Token, chat_web.Done),
        errors=(*_GENERATES, 422),
        own_id="post_chat_web",
        examples={"A question": {"messages": _HELLO, "temperature": 0.8, "top_k": 50, "max_tokens": 16}},
        generates=True,
    ),
)
OTHERS = (
    Operation(
        *("post", "/generate", "Completions", "What follows a text, as roseinfer has it", generate.GeneratedText),
        body=generate.RoseinferRequest,
        errors=_GENERATES,
        examples={
            "A text": {"prompt": "Hello, who are you?", "max_new_tokens": 16},
            "A draw": {"prompt": "Hello, who are you?", "temperature": 0.8, "top_p": 0.95, "do_sample": True},
        },
        generates=True,
        streams="text/plain",
    ),
    Operation(
        *("post", "/v1/embeddings", "Embeddings", "A text as numbers", embeddings.Embeddings),
        body=embeddings.EmbeddingRequest,
        errors=_GENERATES,
        examples={"Two texts": {"model": MODEL, "input": ["A cat.", "A dog."]}},
    ),
    Operation(
        *("get", "/v1/requests/{id}/timeline", "Server", "Where a request's time went", Timeline),
        errors=(404, 500),
        parameters=(_in_path("id", "Of a request under way or one of the last: what x-request-id said."),),
    ),
    Operation("get", "/v1/models", "Models", "The model that is served", openai.ModelList),
    Operation(
        *("get", "/v1/models/{model}", "Models", "A model", openai.ModelCard),
        errors=(404, 500),
        parameters=(_in_path("model", "Its name, which may have slashes."),),
    ),
    Operation(
        *("post", "/tokenize", "Tokens", "The ids that would run", openai.Tokenized),
        body=openai.TokenizeRequest,
        errors=_BODY,
        examples={"A text": {"prompt": "Hello"}, "A conversation": {"messages": _HELLO}},
    ),
    Operation(
        *("post", "/detokenize", "Tokens", "The text of ids", openai.Detokenized),
        body=openai.DetokenizeRequest,
        errors=_BODY,
        examples={"Ids": {"tokens": [72, 73]}},
    ),
    Operation("get", "/health", "Server", "The process lives", chat_web.Health),
    Operation("get", "/stats", "Server", "Replicas of the model, and whether they have room", chat_web.Stats),
    Operation("get", "/ready", "Server", "It takes requests", openai.Health, errors=(500, 503)),
    Operation("get", "/metrics", "Server", "Figures for Prometheus", "text/plain"),
    Operation(
        *("post", "/debug/profile", "Server", "A profiler's trace of the next steps, where --debug-profile is given"),
        answer=dict,
        errors=(400, 403, 409, 500, 503, 504),
        parameters=(_STEPS, _TIMEOUT),
        headers=("x-headrace-steps",),
    ),
    Operation(
        *("get", "/admin/engines", "Server", "How each engine stands, where --admin is given", rolling.Engines),
        errors=(403, 500),
    ),
    Operation(
        *("post", "/admin/engines/{engine}/drain", "Server", "What it has is moved, and it ends; a line for each step"),
        answer=_LINES,
        errors=_CHANGES,
        parameters=(_ENGINE, _FORCE),
    ),
    Operation(
        *("post", "/admin/engines/{engine}/resume", "Server", "One that was drained starts; likewise"),
        answer=_LINES,
        errors=_CHANGES,
        parameters=(_ENGINE,),
    ),
    Operation(
        *("post", "/admin/reload", "Server", "New weights or settings, one engine at a time; likewise", _LINES),
        body=ReloadOptions,
        errors=(*_BODY, 403, 409),
    ),
    Operation("get", "/version", "Server", "Of headrace", openai.Version),
    Operation("get", "/openapi.json", "Server", "This description, for programs", dict),
    Operation("get", "/docs", "Server", "This description, for people", "text/html"),
    Operation("get", "/", "Server", "The chat page", "text/html"),
    Operation(
        *("get", CHAT_PAGE.file_route, "Server", "A part of it", "text/*"),
        errors=(404, 500),
        parameters=(_part_of(CHAT_PAGE),),
    ),
    Operation("get", "/dashboard", "Server", "The live page", "text/html"),
    Operation(
        *("get", LIVE_PAGE.file_route, "Server", "A part of it", "text/*"),
        errors=(404, 500),
        parameters=(_part_of(LIVE_PAGE),),
    ),
    Operation(
        *("get", "/dashboard/events", "Server", "What it shows, at most twice a second", "text/event-stream"),
        events=(dashboard.Event,),
        errors=(500, 503),
    ),
)
OPERATIONS = (*CHAT, *CHAT_WEB, *COMPLETIONS, *RESPONSES, *MESSAGES, *OTHERS)
