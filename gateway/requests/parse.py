"""From a request's bytes to a typed request, or to a 400 that names the field."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw

from gateway.errors import ApiError
from gateway.openai import ChatRequest, CompletionRequest, StreamOptions
from gateway.timeline.laps import lap

T = TypeVar("T")
Acceptable = Callable[[Any], bool]

_PROBLEM = re.compile(r"(?P<problem>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_MAX_NAMED = 16  # ignored fields named in the header
_MAX_NAME = 48
_MAX_PATH = 300


def _one_of(*values: Any) -> Acceptable:
    return lambda value: any(value == allowed and type(value) is type(allowed) for allowed in values)


_NOTHING = _one_of(None)
_NO_ITEMS = _one_of(None, [])

_NO_NUMBER = _one_of(None, 0, 0.0)

# Known features that are not built, each with the values that ask for nothing.
_EXTENSIONS_NOT_BUILT: Mapping[str, Acceptable] = {
    "use_beam_search": _one_of(None, False),
    "length_penalty": _one_of(None, 1, 1.0),
    "typical_p": _one_of(None, 1, 1.0),
    "mirostat": _NO_NUMBER,
    "dry_multiplier": _NO_NUMBER,
    "xtc_probability": _NO_NUMBER,
    "dynatemp_range": _NO_NUMBER,
    "top_n_sigma": _one_of(None, -1, -1.0),
    "t_max_predict_ms": _one_of(None, 0, -1),
    "stop_regex": _NO_ITEMS,
    "logits_processors": _NO_ITEMS,
    "custom_logit_processor": _NOTHING,
    "repetition_detection": _NOTHING,
    "lora": _NO_ITEMS,
    "lora_path": _NOTHING,
    "documents": _NO_ITEMS,
    "thinking_token_budget": _NOTHING,
    "return_tokens_as_token_ids": _one_of(None, False),
}
_NOT_BUILT: Mapping[type[Any], Mapping[str, Acceptable]] = {
    ChatRequest: {
        **_EXTENSIONS_NOT_BUILT,
        "best_of": _one_of(None, 1),
        "echo": _one_of(None, False),
        "functions": _NO_ITEMS,
        "function_call": _one_of(None, "none"),
        "audio": _NOTHING,
        "modalities": _one_of(None, ["text"]),
        "web_search_options": _NOTHING,
        "moderation": _NOTHING,
        "chat_template": _NOTHING,
    },
    CompletionRequest: {**_EXTENSIONS_NOT_BUILT},
}

_SHAPES = {"json_object": "schema", "json_schema": "json_schema"}  # the field beside a response_format's type

# Other servers' and other APIs' fields whose silence would change much, each with what to use instead.
FORMS: Mapping[str, str] = {
    "regex": "structured_outputs.regex",
    "ebnf": "structured_outputs.grammar",
    "grammar": "structured_outputs.grammar",
    "json_schema": "structured_outputs.json",
}
SAMPLING: Mapping[str, str] = {"repeat_penalty": "repetition_penalty", "min_new_tokens": "min_tokens"}
LENGTHS = ("max_new_tokens", "n_predict", "num_predict")
_MISNAMED: Mapping[type[Any], Mapping[str, str]] = {
    ChatRequest: {
        **FORMS,
        **SAMPLING,
        **dict.fromkeys((*LENGTHS, "max_output_tokens"), "max_completion_tokens"),
        **dict.fromkeys(("input", "instructions", "system"), "messages"),
        "text": "response_format",
    },
    CompletionRequest: {
        **FORMS,
        **SAMPLING,
        **dict.fromkeys((*LENGTHS, "max_output_tokens", "max_completion_tokens"), "max_tokens"),
        **dict.fromkeys(("input", "messages"), "prompt"),
    },
}

# Fields without effect here, each with the values that ask for nothing and so need no telling.
_ASKS_FOR_NOTHING: Mapping[str, Acceptable] = {
    "store": _one_of(None, False),
    "metadata": _one_of(None, {}),
    "service_tier": _one_of(None, "auto", "default"),
    "stream_options.include_obfuscation": _one_of(None, False),
}


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    request: T
    ignored: list[str]  # fields that nobody here knows


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A path may be as long as a schema is deep: of a long one, its ends are told."""
    if param is not None and len(param) > _MAX_PATH:
        short = f"{param[: _MAX_PATH // 2]}...{param[-_MAX_PATH // 2 :]}"
        param, message = short, message.replace(param, short)
    return ApiError(400, message, param=param, code=code)


def unbuilt(param: str | None, message: str) -> ApiError:
    """For what is known, and not built: to refuse it by name is better than to answer something else."""
    told = {"x-should-retry": "false"}  # or clients try again, as after every 5xx
    return ApiError(501, message, type="not_implemented_error", param=param, code="not_implemented", headers=told)


def decode(data: bytes | Raw, kind: type[T], where: str = "") -> T:
    """`where`: path of `data` inside the request, such as messages[2]. Raises ApiError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error), where) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(where or None, f"The body is not valid JSON in UTF-8: {error}", "invalid_json") from None
    except RecursionError:
        raise invalid(where or None, "The body is nested too deeply.", "invalid_json") from None


def _wrong_field(problem: str, where: str) -> ApiError:
    match = _PROBLEM.match(problem)
    assert match is not None
    path = where + (match["path"] or "")
    if missing := _MISSING.match(problem):
        path = join(path, missing[1])
        return invalid(path.lstrip("."), f"Missing required field: {path.lstrip('.')}.", "missing_required_parameter")
    path = path.lstrip(".")
    text = match["problem"].replace("`", "").replace("Expected ", "expected ")
    code = "invalid_value" if text.startswith("Invalid enum value") else "invalid_type"
    return invalid(path or None, f"Invalid value for {path or 'the body'}: {text}.", code)


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def field_names(kind: type[Any]) -> frozenset[str]:
    """Of a struct. Not from msgspec.structs.fields(), which reads every annotation anew: half a millisecond."""
    return frozenset(kind.__struct_encode_fields__)


def parse(body: bytes, kind: type[T], misnamed: Mapping[str, str] | None = None) -> Parsed[T]:
    """Fields without effect are listed; those of features that are known and not built are refused (501), and so are
    those of other APIs (400): `misnamed` has what to use instead."""
    with lap("parse"):
        return _parse(body, kind, misnamed or _MISNAMED.get(kind, {}))


def _parse(body: bytes, kind: type[T], misnamed: Mapping[str, str]) -> Parsed[T]:
    fields = decode(body, dict[str, Raw])
    _check_names(fields, misnamed)
    not_built = _NOT_BUILT.get(kind, _EXTENSIONS_NOT_BUILT)
    for name in fields.keys() & not_built.keys():
        if not not_built[name](decode(fields[name], Any, name)):
            raise unbuilt(name, f"{name} is not supported by this server yet.")
    known = field_names(kind)
    ignored = [name for name in fields if name not in known and name not in not_built and _asks(name, fields[name])]
    ignored += _ignored_options(fields.get("stream_options"))
    ignored += _ignored_words(fields["response_format"]) if "response_format" in known & fields.keys() else []
    return Parsed(decode(body, kind), ignored)


def _check_names(fields: Mapping[str, Raw], misnamed: Mapping[str, str]) -> None:
    for name in fields.keys() & misnamed.keys():
        if bytes(fields[name]) != b"null":
            raise invalid(name, f"{name} is not of this endpoint; use {misnamed[name]}.", "unsupported_parameter")


def _asks(name: str, raw: Raw) -> bool:
    return not _ASKS_FOR_NOTHING.get(name, _NOTHING)(decode(raw, Any, name))


def _ignored_options(raw: Raw | None) -> list[str]:
    if raw is None or bytes(raw) == b"null":
        return []
    known = field_names(StreamOptions)
    options = decode(raw, dict[str, Raw], "stream_options")
    names = [f"stream_options.{name}" for name in options if name not in known]
    return [name for name in names if _asks(name, options[name.partition(".")[2]])]


def _ignored_words(raw: Raw) -> list[str]:
    """A schema's description is not shown to the model, either."""
    form = decode(raw, Any, "response_format")
    if not isinstance(form, dict):
        return []
    kind = form.get("type")
    shape = _SHAPES.get(kind) if isinstance(kind, str) else None
    ignored = others(form, {"type", shape}, "response_format")
    named = form.get("json_schema") if shape == "json_schema" else None
    return ignored + others(named, {"name", "schema", "strict"}, "response_format.json_schema")


def others(given: Any, known: Collection[str | None], where: str) -> list[str]:
    """Names of an object that ask for something, and are not among the known."""
    fields = given if isinstance(given, dict) else {}
    return [f"{where}.{name}" for name, value in fields.items() if name not in known and value not in (None, "")]


def ignored_header(names: list[str]) -> str:
    """Fit for a header: bounded, printable ASCII, commas only between names."""
    shown = [re.sub(r"[^A-Za-z0-9_.\[\]-]", "?", name[:_MAX_NAME]) for name in names[:_MAX_NAMED]]
    if len(names) > _MAX_NAMED:
        shown.append(f"and-{len(names) - _MAX_NAMED}-more")
    return ", ".join(shown)
