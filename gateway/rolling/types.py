"""What is told of changes, as JSON: a line for each step of one, and how all engines stand."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["drain", "resume", "reload"]
Phase = Literal[
    "checking",
    "closing",
    "moving",
    "stopping",
    "starting",
    "up",
    "drained",
    "failed_start",
    "waiting",
    "done",
    "failed",
]
State = Literal["up", "draining", "drained", "starting", "reloading", "down"]
Value = str | int | float | bool


class Line(msgspec.Struct, frozen=True):
    """One step. waiting: a heart-beat, no step; done, failed: the last one."""

    phase: Phase
    message: str
    engine: int | None = None
    seconds: float = 0.0  # since the change began


class UnderWay(msgspec.Struct, frozen=True):
    kind: Kind
    last: Line


class EngineState(msgspec.Struct, frozen=True):
    engine: int
    state: State  # down: it has died and is being started again
    since_s: float  # it is in this state for so long
    restarts: int  # after deaths
    requests: int  # sequences of the gateway that answers
    settings: dict[str, Value]  # as asked for; what the engine made of them follows
    pid: int | None = None
    device: str | None = None
    max_model_len: int | None = None
    max_seqs: int | None = None


class Engines(msgspec.Struct, frozen=True):
    engines: list[EngineState]
    change: UnderWay | None
