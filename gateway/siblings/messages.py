"""What gateways of one server tell each other: frames on a unix socket of the first one, as those of engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import msgspec

from gateway.config import Config
from gateway.dashboard.elsewhere import Elsewhere
from gateway.http.ratelimit import Spent
from gateway.model.resolve import ResolvedModel
from gateway.siblings.sums import Series
from scheduler.protocol import LENGTH_BYTES, FrameSplitter

READ_BYTES = 1 << 16
LINK = "gateways.sock"  # in the server's private folder
HTTP = "http.sock"  # the first one's pages, for the others
What = Literal["series", "live", "timeline", "shut", "move", "open"]


def engine_socket(number: int) -> str:
    """Of one engine; leads to its socket of now."""
    return f"engine-{number}.sock"


class Model(msgspec.Struct, frozen=True):
    """A ResolvedModel."""

    path: str
    format: str
    name: str
    tokenizer: str = ""  # empty: its own

    @classmethod
    def of(cls, resolved: ResolvedModel) -> Model:
        tokenizer = "" if resolved.tokenizer is None else str(resolved.tokenizer.resolve())
        return cls(str(resolved.path.resolve()), resolved.format, resolved.name, tokenizer)

    def resolved(self) -> ResolvedModel:
        return msgspec.convert(
            {**msgspec.structs.asdict(self), "tokenizer": self.tokenizer or None}, ResolvedModel, dec_hook=_path
        )


def _path(kind: type, value: str) -> Path:
    return Path(value)


class Setup(msgspec.Struct, frozen=True):
    """What a sibling is started with, as a line of JSON."""

    number: int  # from 1; the first gateway is 0
    config: Config
    host: str
    port: int
    folder: str
    model: Model
    replicas: int


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """The first of a sibling."""

    number: int


class Prepared(msgspec.Struct, frozen=True, array_like=True, tag="prepared"):
    """It could serve, and waits for the word."""


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """Serve: the first gateway does, of which others need something now and then."""


class Told(msgspec.Struct, frozen=True, array_like=True, tag="told"):
    """Its series, now and then, and as its last word."""

    series: list[Series]


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    ask_id: int
    series: list[Series] = []
    timeline: bytes = b""  # as JSON; empty: nothing is known of that request
    live: Elsewhere | None = None
    moved: int = 0  # requests


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """timeline: the request's, as far as this key may see it. shut: give this engine no new work; move: what it has of
    yours goes on elsewhere, after so long; open: give it work again, as soon as you have found it. Answered when done.
    """

    ask_id: int
    what: What
    request_id: str = ""
    key: str | None = None
    engine: int = 0
    pause: bool = False  # it will be back in a moment
    wait_s: float = 0.0
    message: str = ""


class Charges(msgspec.Struct, frozen=True, array_like=True, tag="charges"):
    """What clients with limits have used at one gateway since its last such message."""

    gateway: int
    spent: list[Spent]


class Died(msgspec.Struct, frozen=True, array_like=True, tag="died"):
    """An engine, as its supervisor saw it."""

    engine: int
    from_outside: bool  # killed by somebody


class Left(msgspec.Struct, frozen=True, array_like=True, tag="left"):
    """A gateway is gone, and with it the requests that were open there."""

    gateway: int


FromSibling = Hello | Prepared | Told | Answer | Charges
ToSibling = Open | Died | Ask | Charges | Left

_encoder = msgspec.msgpack.Encoder()
from_sibling = msgspec.msgpack.Decoder(FromSibling)
to_sibling = msgspec.msgpack.Decoder(ToSibling)


def frame(message: FromSibling | ToSibling) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


async def bodies(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Until the other side has closed. Raises FrameError, OSError."""
    splitter = FrameSplitter()
    while data := await reader.read(READ_BYTES):
        for body in splitter.feed(data):
            yield body
