"""Fields that depend on a server's own settings and model."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.chat_web.limits import ROLES, bounds_of
from gateway.chat_web.prepare import DECIMAL, INTEGER
from gateway.openapi.fields.forms import NULL, Schema, either, ref, text
from gateway.openapi.fields.openai import SAMPLING
from gateway.roseinfer.generate import MAX_NEW_TOKENS
from gateway.services import Services

# Without defaults of the model's own.
_DEFAULTS: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def of_server(services: Services) -> dict[str, Schema]:
    """What depends on this server's own settings and model."""
    settings, model = services.settings, services.model
    hottest = min(2.0, settings.max_temperature)
    warmth = "How far sampling strays from the most likely token; 0: not at all."
    given = {**SAMPLING, "temperature": text(warmth, minimum=0, maximum=hottest)}
    bounded = {
        name: {**given[name], "default": model.sampling_defaults.get(name, _DEFAULTS[name])} for name in _DEFAULTS
    }
    bounded |= _of_chat_web(services)
    bounded["n"] = text("Answers to each prompt.", minimum=1, maximum=settings.max_choices, default=1)
    return bounded


def of_roseinfer(services: Services) -> dict[str, Schema]:
    defaults = services.settings.generate
    of_model = of_server(services)
    top_p = "Only the most likely tokens whose probabilities sum to this are drawn from; 0 and 1: all."
    fields = {
        "prompt": text("The text that goes on."),
        "max_new_tokens": text("Most tokens of the answer.", minimum=0, default=MAX_NEW_TOKENS),
        "temperature": {**of_model["temperature"], "default": defaults.temperature},
        "top_k": {**SAMPLING["top_k"], "default": defaults.top_k},
        "top_p": text(top_p, minimum=0, maximum=1, default=defaults.top_p),
        "stop_on_eos": text("The model's end tokens end the answer.", default=defaults.stop_on_eos),
        "do_sample": text("Tokens are drawn; false: each is the most likely one.", default=defaults.do_sample),
        "stream": text("What follows the prompt comes as plain text while it is made.", default=False),
    }
    return {f"RoseinferRequest.{name}": schema for name, schema in fields.items()}


def _of_chat_web(services: Services) -> dict[str, Schema]:
    bounds, defaults = bounds_of(services.settings), services.settings.web_defaults
    warmth = "How far sampling strays from the most likely token; 0: not at all."
    drawn = "Only so many of the most likely tokens are drawn from; 0: all."
    length = "Most tokens of the answer; it ends sooner where the context does."
    return {
        "NanochatChatRequest.messages": text(
            f"The conversation so far, of {bounds.total_chars} characters at most.",
            items=ref("NanochatMessage"),
            minItems=1,
            maxItems=bounds.messages,
        ),
        "NanochatChatRequest.temperature": text(
            warmth, default=defaults.temperature, **_as_text("number", DECIMAL, 0, bounds.max_temperature)
        ),
        "NanochatChatRequest.top_k": text(
            drawn, default=defaults.top_k, **_as_text("integer", INTEGER, bounds.min_top_k, bounds.max_top_k)
        ),
        "NanochatChatRequest.max_tokens": text(
            length, default=defaults.max_tokens, **_as_text("integer", INTEGER, 1, bounds.max_tokens)
        ),
        "NanochatMessage.role": text("Whose message it is.", enum=list(ROLES)),
        "NanochatMessage.content": text("The text.", minLength=1, maxLength=bounds.message_chars),
    }


def _as_text(kind: str, form: str, low: float, high: float) -> Schema:
    """A number, or a text that spells one."""
    number = {"type": kind, "minimum": low, "maximum": high}
    return either(number, {"type": "string", "pattern": f"^{form}$"}, NULL)
