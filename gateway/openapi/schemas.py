"""The schemas of requests and answers, from their structs and the table of fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct, UnsetType

from gateway import embeddings, openai
from gateway.chat_web import types as chat_web
from gateway.dashboard import types as dashboard
from gateway.messages import types as anthropic
from gateway.openapi.codes import CODES
from gateway.openapi.fields.forms import Schema, ref
from gateway.openapi.fields.table import all_fields
from gateway.openapi.fields.types import TYPES
from gateway.responses import types as responses
from gateway.rolling import types as rolling
from gateway.rolling.settings import ReloadOptions
from gateway.roseinfer import generate
from gateway.services import Services
from gateway.timeline.store import Timeline

_REPLACING = frozenset({"anyOf", "enum", "$ref", "allOf"})
_NOTES = frozenset({"description", "default", "examples"})
_ANTHROPIC_DELTA = (
    anthropic.TextDelta | anthropic.ThinkingDelta | anthropic.SignatureDelta | anthropic.InputDelta | UnsetType
)


class ErrorDetail(Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct, kw_only=True):
    error: ErrorDetail


class AnthropicErrorDetail(Struct, kw_only=True):
    type: str
    message: str


class AnthropicError(Struct, kw_only=True):
    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str | None


class NanochatErrorAt(Struct, kw_only=True):
    type: str | None
    loc: list[str | int]
    msg: str


class NanochatError(Struct, kw_only=True):
    detail: str | list[NanochatErrorAt]
    error: ErrorDetail


def _narrowed(name: str, kind: type[Struct], **fields: Any) -> type[Struct]:
    """A struct with other types of some fields: a union of structs without tags cannot be described."""
    defined: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for each in msgspec.structs.fields(kind):
        shape = fields.get(each.encode_name, each.type)
        is_optional = each.default is not msgspec.NODEFAULT
        defined.append((each.encode_name, shape, each.default) if is_optional else (each.encode_name, shape))
    return msgspec.defstruct(name, defined, kw_only=True)


ChatCompletion = _narrowed(
    "ChatCompletion", openai.Reply, object=Literal["chat.completion"], choices=list[openai.ChatChoice]
)
ChatCompletionChunk = _narrowed(
    "ChatCompletionChunk", openai.Reply, object=Literal["chat.completion.chunk"], choices=list[openai.ChatChunkChoice]
)
Completion = _narrowed(
    "Completion", openai.Reply, object=Literal["text_completion"], choices=list[openai.CompletionChoice]
)
MessageEvent = _narrowed("MessageEvent", anthropic.Event, delta=_ANTHROPIC_DELTA)
MessageDelta = _narrowed("MessageDelta", anthropic.Event, delta=anthropic.MessageEnd | UnsetType)

_REQUESTS: Mapping[str, Sequence[type[Any]]] = {
    "": (
        *(openai.ChatRequest, openai.CompletionRequest, openai.TokenizeRequest, openai.DetokenizeRequest),
        *(openai.Message, openai.TextPart, openai.MessageToolCall, openai.ToolDefinition),
        *(embeddings.EmbeddingRequest, generate.RoseinferRequest),
    ),
    "Anthropic": (
        *(anthropic.MessagesRequest, anthropic.Conversation, anthropic.InputMessage, anthropic.CustomTool),
        *(anthropic.TextInput, anthropic.ThinkingInput, anthropic.ToolUseInput, anthropic.ToolResultInput),
    ),
    "Nanochat": (chat_web.ChatRequest, chat_web.Message),
    "Responses": (
        *(responses.ResponseRequest, responses.MessageInput, responses.PartInput, responses.CallInput),
        *(responses.CallOutputInput, responses.ReasoningInput, responses.ReferenceInput, responses.FunctionTool),
    ),
}
_ANSWERS: Mapping[str, Sequence[type[Any]]] = {
    "": (
        *(ChatCompletion, ChatCompletionChunk, Completion, openai.ModelList, openai.ModelCard),
        *(openai.Health, openai.Version, openai.Tokenized, openai.Detokenized, openai.Rendered),
        *(embeddings.Embeddings, generate.GeneratedText, Timeline, Error, AnthropicError, NanochatError),
    ),
    "Admin": (rolling.Engines, ReloadOptions),
    "Dashboard": (dashboard.Event,),
    "Nanochat": (chat_web.Token, chat_web.Done, chat_web.Health, chat_web.Stats),
    "Anthropic": (anthropic.Message, MessageEvent, MessageDelta, anthropic.TokenCount),
    "Responses": (
        *(responses.Response, responses.ItemList, responses.Deleted, responses.InputTokens),
        *(responses.ResponseEvent, responses.ItemEvent, responses.PartEvent, responses.TextEvent),
        *(responses.ArgumentsEvent, responses.ErrorEvent),
    ),
}


def component_of(kind: type[Any]) -> str:
    """The name of a type's schema."""
    for table in (_REQUESTS, _ANSWERS):
        for prefix, kinds in table.items():
            if kind in kinds:
                return prefix + kind.__name__
    raise KeyError(kind)


def components(services: Services) -> dict[str, Schema]:
    fields = all_fields(services)
    answers = _generated(_ANSWERS)
    requests = _generated(_REQUESTS)
    described = {name: _described(name, schema, fields) for name, schema in requests.items()}
    known = {**answers, **described, **_of_server(services)}
    known["ErrorDetail"]["properties"]["code"] = {"enum": [*sorted(set(CODES)), None]}
    known["AnthropicToolUseBlock"]["properties"]["input"] = {"type": "object"}
    return {name: _without_null_defaults(known[name]) for name in sorted(known)}


def _of_server(services: Services) -> dict[str, Schema]:
    last = services.model.tokenizer.vocab_size - 1
    return {
        "ModelName": {"title": "ModelName", "type": "string", "enum": [services.model.name]},
        "TokenId": {"title": "TokenId", "type": "integer", "minimum": 0, "maximum": last},
    }


def _generated(table: Mapping[str, Iterable[type[Any]]]) -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    for prefix, kinds in table.items():
        template = ref(prefix + "{name}")["$ref"]
        _, schemas = msgspec.json.schema_components(kinds, ref_template=template)
        found |= {prefix + name: {**schema, "title": prefix + name} for name, schema in schemas.items()}
    return found


def _described(name: str, schema: Schema, fields: Mapping[str, Schema]) -> Schema:
    properties = {
        field: _merged(given, fields.get(f"{name}.{field}", fields.get(field, {})))
        for field, given in schema["properties"].items()
    }
    return {**schema, **TYPES.get(name, {}), "properties": properties}


def _merged(given: Schema, told: Schema) -> Schema:
    """What narrows a type goes to the first of its alternatives: the other is null."""
    notes = {key: value for key, value in told.items() if key in _NOTES}
    narrowing = {key: value for key, value in told.items() if key not in _NOTES}
    default = {"default": given["default"]} if "default" in given else {}
    if narrowing.keys() & _REPLACING:
        return {**narrowing, **default, **notes}
    if "anyOf" in given:
        first, *others = given["anyOf"]
        return {**given, "anyOf": [{**first, **narrowing}, *others], **notes}
    return {**given, **narrowing, **notes}


def _without_null_defaults(schema: Any) -> Any:
    """That a field may be left out is told by its not being required."""
    if isinstance(schema, list):
        return [_without_null_defaults(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if not (key == "default" and value is None)}
    return {key: _without_null_defaults(value) for key, value in kept.items()}
