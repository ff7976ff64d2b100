"""What gateways and the actors of a cluster tell each other, as JSON over Ray's own channel."""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.model.resolve import ModelRequest
from gateway.siblings.messages import Model
from scheduler.protocol import Credentials, EngineConfig


class Order(msgspec.Struct, frozen=True):
    """To an engine's host: start it. request: what the model's path was found by, for nodes that have it elsewhere."""

    config: EngineConfig
    request: ModelRequest


class Fetched(msgspec.Struct, frozen=True, tag="fetched"):
    """The model is on the engine's node."""


class Started(msgspec.Struct, frozen=True, tag="started"):
    host: str
    port: int
    node_id: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """An EngineFailed."""

    kind: Literal["model", "memory", "internal", "lost", "hung"]
    message: str


class Ended(msgspec.Struct, frozen=True):
    """words: how, for people. was_killed: by nothing that it did itself, nor by its gateway."""

    words: str
    was_killed: bool


class Life(msgspec.Struct, frozen=True):
    """One run of a replica's engine."""

    number: int  # counted by replica
    host: str
    port: int
    ended: Ended | None = None


class Known(msgspec.Struct, frozen=True):
    """What a gateway that attaches itself has to know."""

    model: Model
    replicas: int
    credentials: Credentials  # of gateways


Answer = Fetched | Started | Refused
