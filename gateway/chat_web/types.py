"""What nanochat's web server takes and answers. Its names: a worker is a replica of the model, gpu its number."""

from __future__ import annotations

from typing import Literal

from msgspec import Raw, Struct


class Message(Struct, kw_only=True):
    role: str
    content: str


class ChatRequest(Struct, kw_only=True):
    messages: list[Raw]
    # numbers may be texts, as a page's fields hold them: there, pydantic reads them
    temperature: float | str | None = None
    max_tokens: int | str | None = None
    top_k: int | str | None = None  # 0: the whole vocabulary


class Token(Struct, frozen=True):
    """An event: what the answer goes on with, in whole characters."""

    token: str
    gpu: int


class Done(Struct, frozen=True):
    """The last event of an answer that is whole."""

    done: bool


class Health(Struct, frozen=True):
    status: str
    ready: bool
    num_gpus: int  # replicas, on GPUs or not
    available_workers: int


State = Literal["up", "draining", "drained", "down"]
"""draining, drained: an operator's doing; docs/rolling.md"""


class Worker(Struct, frozen=True):
    gpu_id: int
    device: str
    # ours: a worker computes many requests at a time
    running: int = 0
    waiting: int = 0
    max_running: int = 0
    state: State = "up"


class Stats(Struct, frozen=True):
    total_workers: int
    available_workers: int  # that would begin another request at once
    busy_workers: int
    workers: list[Worker]
