"""The parameters that a request runs with, and where each came from: the request, the model's own, or a default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.model.served import ServedModel
from gateway.openai import GenerateRequest
from gateway.requests.convert import Job

Parameters = dict[str, dict[str, Any]]
Explained = Callable[[], Parameters]  # made only where somebody asks

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence",
    "frequency_penalty": "frequency",
    "repetition_penalty": "repetition",
    "min_tokens": "min_tokens",
}

_ONLY_ASKED = (  # of lists and tables their size
    *("logit_bias", "allowed_token_ids", "bad_words", "priority", "truncate_prompt_tokens", "best_of"),
    *("reasoning_effort", "parallel_tool_calls", "echo", "logprobs", "prompt_logprobs"),
)
SHOWN = 40  # characters of a stop string


def explain(request: GenerateRequest, job: Job, model: ServedModel) -> Parameters:
    """By the request's names: {"value": ..., "from": "request", "generation_config", "default" or "drawn"}. Fields
    that only a request can set are told where it does."""
    params = job.params[0]
    found: Parameters = {}
    for name, attribute in _SAMPLING.items():
        found[name] = {"value": getattr(params, attribute), "from": _source(request, name, model)}
    lengths = [each.max_tokens for each in job.params]
    asked = request.max_tokens is not None or getattr(request, "max_completion_tokens", None) is not None
    found["max_tokens"] = {
        "value": lengths[0] if len(set(lengths)) == 1 else lengths,
        "from": "request" if asked else "default",
    }
    found["seed"] = {"value": job.seed, "from": "drawn" if request.seed is None else "request"}
    found["n"] = {"value": request.n or 1, "from": _source(request, "n", model)}
    found["stop"] = {"value": [text[:SHOWN] for text in job.text.stops], "from": _source(request, "stop", model)}
    own_ids = "request" if request.stop_token_ids or request.ignore_eos else "generation_config"
    found["stop_token_ids"] = {"value": list(params.stop_ids), "from": own_ids}
    for name in _ONLY_ASKED:
        value = getattr(request, name, None)
        if value is not None:
            shown = len(value) if isinstance(value, dict | list) else value
            found[name] = {"value": shown, "from": "request"}
    return found


def _source(request: GenerateRequest, name: str, model: ServedModel) -> str:
    if getattr(request, name) is not None:
        return "request"
    return "generation_config" if name in model.sampling_defaults else "default"
