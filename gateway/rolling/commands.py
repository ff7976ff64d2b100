"""headrace drain, resume, reload and engines: what they ask a running server, and the lines that they print."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway import remote
from gateway.rolling.types import Engines, EngineState, Line

PATIENCE_S = 40.0  # heart-beats come more often


def drain(url: str, key: str, engine: int, force: bool) -> bool:
    return _change(url, key, f"/admin/engines/{engine}/drain" + ("?force=true" if force else ""))


def resume(url: str, key: str, engine: int) -> bool:
    return _change(url, key, f"/admin/engines/{engine}/resume")


def reload(url: str, key: str, given: Mapping[str, str | bool]) -> bool:
    return _change(url, key, "/admin/reload", msgspec.json.encode(given))


def _change(url: str, key: str, path: str, body: bytes = b"") -> bool:
    """Prints what is done. Whether it went well. Raises RemoteError."""
    decode = msgspec.json.Decoder(Line).decode
    for text in remote.lines(url.rstrip("/"), "POST", path, key, PATIENCE_S, body):
        try:
            line = decode(text)
        except msgspec.MsgspecError as error:
            raise remote.stranger(url, error) from error
        if line.phase != "waiting":
            print(f"{line.seconds:7.1f} s  {line.message}", flush=True)
        if line.phase in ("done", "failed"):
            return line.phase == "done"
    raise remote.RemoteError(f"{url} broke off; what was begun may go on: headrace engines shows it")


def engines(url: str, key: str) -> None:
    """Prints how all stand. Raises RemoteError."""
    answer = b"".join(remote.lines(url.rstrip("/"), "GET", "/admin/engines", key, PATIENCE_S))
    try:
        told = msgspec.json.decode(answer, type=Engines)
    except msgspec.MsgspecError as error:
        raise remote.stranger(url, error) from error
    for engine in told.engines:
        print(_described(engine))
    if told.change is not None:
        print(f"a {told.change.kind} is under way: {told.change.last.message}")


def _described(engine: EngineState) -> str:
    parts = [f"engine {engine.engine}: {engine.state} for {engine.since_s:.0f} s", f"{engine.restarts} restarts"]
    if engine.pid is not None:
        parts.append(f"process {engine.pid}")
    if engine.device is not None:
        parts.append(f"{engine.device}, {engine.max_seqs} rows, {engine.max_model_len} tokens a request")
    return ", ".join([*parts, f"model {engine.settings['model']}"])
