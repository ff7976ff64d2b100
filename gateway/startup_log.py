"""A start as lines of JSON: each phase on standard error as it begins, on standard output that the server is ready."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import ClassVar

import msgspec

from gateway.logs import Event, json_line
from gateway.startup import Started, kv_cache_tokens

log = logging.getLogger("headrace.serve")


class Phase(Event, frozen=True):
    says: ClassVar[str] = "starting"

    phase: str
    total: int | msgspec.UnsetType = msgspec.UNSET  # bytes, tensors or steps, where it is known


class Limits(msgspec.Struct, frozen=True):
    max_model_len: int
    max_seqs: int
    max_step_tokens: int
    kv_cache_tokens: int


class ReadyLine(Event, frozen=True):
    says: ClassVar[str] = "ready"

    version: str
    url: str
    model: str
    architecture: str
    num_parameters: int
    replicas: int
    device: str
    dtype: str
    attention: str
    limits: Limits
    weights_bytes: int
    kv_cache_bytes: int
    working_bytes: int
    needs_key: bool
    seconds: float
    phases_s: dict[str, float]


class PhaseLog:
    """In place of a Display."""

    def __init__(self) -> None:
        self._phases: set[str] = set()

    def __enter__(self) -> PhaseLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held."""

    def report(self, phase: str, done: int, total: int) -> None:
        if phase not in self._phases:
            self._phases.add(phase)
            log.info(Phase(phase, total or msgspec.UNSET))


def ready_line(started: Started) -> str:
    ready = started.ready
    limits = Limits(ready.max_model_len, ready.max_seqs, ready.max_step_tokens, kv_cache_tokens(ready))
    line = ReadyLine(
        version=started.version,
        url=f"{started.base_url}/v1",
        model=started.model,
        architecture=ready.architecture,
        num_parameters=ready.num_parameters,
        replicas=started.replicas,
        device=ready.device,
        dtype=ready.dtype,
        attention=ready.attention,
        limits=limits,
        weights_bytes=ready.weights_bytes,
        kv_cache_bytes=ready.kv_cache_bytes,
        working_bytes=ready.working_bytes,
        needs_key=started.needs_key,
        seconds=round(started.total_s, 3),
        phases_s={name: round(seconds, 3) for name, seconds in (*started.phases_s, *ready.phases_s)},
    )
    return json_line(log.name, line)
