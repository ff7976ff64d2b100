"""The feed of a server, wherever it is, one event after another."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gateway import remote
from gateway.dashboard.types import Event

PATH = "/dashboard/events"
PATIENCE_S = 40.0  # heart-beats come more often
_PREFIX = b"data: "

FeedError = remote.RemoteError


def read(url: str, key: str) -> Iterator[Event]:
    """Until the server ends it. key "": none is sent. Raises FeedError."""
    decode = msgspec.json.Decoder(Event).decode
    for line in remote.lines(url, "GET", PATH, key, PATIENCE_S):
        if line.startswith(_PREFIX):
            try:
                yield decode(line.removeprefix(_PREFIX))
            except msgspec.MsgspecError as error:
                raise remote.stranger(url, error) from error
