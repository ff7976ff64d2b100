"""POST /v1/embeddings: the mean of a text's last hidden states in the served model, of length 1."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway import openai
from gateway.answers.choice import Delta
from gateway.errors import ApiError
from gateway.model.served import ServedModel
from gateway.openai import encode
from gateway.requests.convert import Job, Limits, TextRules, check_can_fit, check_model
from gateway.requests.parse import invalid, parse
from gateway.requests.prepare import Prepared, limits
from gateway.requests.prompts import Prompt, check_ids
from gateway.services import Services
from gateway.timeline.laps import Laps
from gateway.wires.base import error_event
from scheduler.types import SamplingParams

Vector = npt.NDArray[np.float32]


class EmbeddingRequest(Struct, kw_only=True):
    model: str
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class Embedding(Struct, frozen=True):
    index: int
    embedding: list[float] | str  # str: float32 little-endian in base64
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Struct, frozen=True):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


def prepare_embeddings(body: bytes, services: Services) -> Prepared:
    parsed = parse(body, EmbeddingRequest)
    request, model, bounds = parsed.request, services.model, limits(services)
    check_model(request.model, model)
    _check_dimensions(request.dimensions, services)
    inputs = _inputs(request.input, bounds)
    prompts = [_ids(where, given, model, bounds.max_model_len) for where, given in inputs]
    params = SamplingParams(max_tokens=0, embed=True)
    job = Job(prompts, [params] * len(prompts), [0] * len(prompts), 1, TextRules())
    wire = EmbeddingsWire(model.name, request.encoding_format == "base64", request.dimensions)
    return Prepared(job, wire, parsed.ignored, stream=False)


def _check_dimensions(asked: int | None, services: Services) -> None:
    ready = services.engine.ready
    most = 0 if ready is None else ready.hidden_size
    if asked is not None and not 1 <= asked <= most:
        raise invalid("dimensions", f"dimensions must be between 1 and {most}, but is {asked}.", "value_out_of_range")


def _inputs(value: Any, bounds: Limits) -> list[tuple[str, Prompt]]:
    """Each text, or its token ids, with its path. Lists are of texts, of ids, or of lists of ids."""
    if isinstance(value, str):
        return [("input", value)]
    if not isinstance(value, list):
        raise invalid("input", "Invalid value for input: expected a string or an array.", "invalid_type")
    if not value:
        raise invalid("input", "input must not be empty.", "value_out_of_range")
    if not isinstance(value[0], str | list):
        return [("input", check_ids("input", value, bounds.vocab_size))]
    most = bounds.settings.max_sequences
    if len(value) > most:
        message = f"input holds {len(value)} texts; this server takes at most {most} in a request."
        raise invalid("input", message, "value_out_of_range")
    return [(f"input[{index}]", _element(f"input[{index}]", each, bounds)) for index, each in enumerate(value)]


def _element(where: str, given: Any, bounds: Limits) -> Prompt:
    return given if isinstance(given, str) else check_ids(where, given, bounds.vocab_size)


def _ids(where: str, given: Prompt, model: ServedModel, max_model_len: int) -> list[int]:
    """A text is data: control tokens that it spells stay text."""
    if isinstance(given, list):
        ids = given
    else:
        check_can_fit(where, [given], model, max_model_len)
        ids = model.tokenizer.encode(given)
        if ids and model.add_bos and model.bos_id is not None:
            ids = [model.bos_id, *ids]
    if not ids:
        raise invalid(where, f"{where} must hold at least one token.", "value_out_of_range")
    if len(ids) > max_model_len:
        message = f"This server's maximum context length is {max_model_len} tokens, but {where} has {len(ids)}."
        raise invalid(where, message, "context_length_exceeded")
    return ids


@dataclass(frozen=True, slots=True)
class EmbeddingsWire:
    """Never streamed."""

    model: str
    in_base64: bool
    dimensions: int | None

    def opening(self) -> bytes:
        return b""

    def events(self, delta: Delta, usage: Callable[[], openai.Usage]) -> bytes:
        return b""

    def ending(self, usage: openai.Usage, laps: Laps) -> bytes:
        return b""

    def failure(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, deltas: Sequence[Delta], usage: openai.Usage, laps: Laps) -> bytes:
        data = [Embedding(delta.index, self._written(self._vector(delta))) for delta in deltas]
        counts = EmbeddingUsage(usage.prompt_tokens, usage.prompt_tokens)
        return encode(Embeddings(data, self.model, counts))

    def _vector(self, delta: Delta) -> Vector:
        if delta.prompt is None or delta.prompt.embedding is None:
            raise RuntimeError(f"the engine sent no embedding of input {delta.index}")
        mean = np.frombuffer(delta.prompt.embedding, "<f4")
        return normalised(mean[: self.dimensions])

    def _written(self, vector: Vector) -> list[float] | str:
        return base64.b64encode(vector.tobytes()).decode() if self.in_base64 else vector.tolist()


def normalised(vector: Vector) -> Vector:
    """Of length 1, unless it has none."""
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / (length or 1.0)).astype("<f4")
