"""A gateway's client over TCP with certificates, to the engine's own server."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from engine.door import TlsDoor, UnixDoor
from engine.server import Server
from gateway.cluster.certificates import make_credentials, read_credentials
from gateway.config import ConfigError
from gateway.engines.process import EngineProcess
from gateway.engines.socket import EngineFailed, Listener, SocketEngine
from gateway.engines.tls import connect, lead_to, open_engine
from scheduler.protocol import Accepted, EngineConfig, FirstToken, Output, Outputs, Submit, Tcp
from scheduler.types import SamplingParams
from tests.fixtures.engines import PATIENT, ROOT, RecordingObserver, RecordingSink, fake_command
from tests.fixtures.fake_engine import STATS, ready

READY = ready(EngineConfig(model="none", format="dummy", socket_path=""))
SIDES = make_credentials(datetime.now(UTC))


def encrypted(key: str) -> str:
    loaded = load_pem_private_key(key.encode(), None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")).decode()


@dataclass
class Line:
    server: Server
    tcp: Tcp  # as a gateway finds it


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    door = TlsDoor(Tcp("127.0.0.1", 0, SIDES.engine))
    server = Server(door)
    server.broadcast(READY)
    yield Line(server, Tcp("127.0.0.1", door.port, SIDES.gateway))
    await asyncio.to_thread(server.close, 10)


async def test_a_request_and_its_answer(line: Line) -> None:
    engine = SocketEngine(RecordingObserver(), patience=PATIENT)
    listening = asyncio.create_task(engine.converse(*await connect(line.tcp), Listener(print, print)))
    await engine.available()
    sink, prompt = RecordingSink(), list(range(100_000))

    def answer() -> None:
        while not (taken := line.server.take()):
            line.server.wait(10)
        [(connection, request)] = taken
        assert isinstance(request, Submit) and request.prompt == prompt
        line.server.send(connection, Accepted(request.seq_ids))
        output = Output(request.seq_ids[0], prompt[::-1], "length", None, FirstToken(0.1, 0.1, 0))
        line.server.send(connection, Outputs([output], [], STATS))

    answering = asyncio.create_task(asyncio.to_thread(answer))
    await engine.submit(Submit(engine.new_ids(1), prompt, SamplingParams(max_tokens=4), [0]), sink)
    await sink.finished()
    await answering
    assert sink.tokens == prompt[::-1]
    await asyncio.to_thread(line.server.close, 10)
    with pytest.raises(EngineFailed) as failed:
        await listening
    assert failed.value.kind == "lost"


async def test_a_gateway_of_another_authority_does_not_connect(line: Line) -> None:
    other = make_credentials(datetime.now(UTC)).gateway
    with pytest.raises(OSError, match="certificate verify failed"):
        await connect(Tcp(line.tcp.host, line.tcp.port, other))


async def test_other_gateways_find_it_by_a_file_that_only_we_can_read(line: Line, tmp_path: Path) -> None:
    lead_to(line.tcp, tmp_path / "engine.sock")
    assert (tmp_path / "engine.sock").stat().st_mode & 0o777 == 0o600
    reader, writer = await open_engine(tmp_path / "engine.sock")
    assert await reader.readexactly(4)
    writer.transport.abort()


async def test_or_by_a_link_to_its_socket(tmp_path: Path) -> None:
    server = Server(UnixDoor(str(tmp_path / "engine-1.sock")))
    server.broadcast(READY)
    (tmp_path / "engine.sock").symlink_to(tmp_path / "engine-1.sock")
    reader, writer = await open_engine(tmp_path / "engine.sock")
    assert await reader.readexactly(4)
    writer.transport.abort()
    await asyncio.to_thread(server.close, 10)


async def test_a_process_tells_its_port_and_is_found_there(tmp_path: Path) -> None:
    """The real program, which opens its door before it loads anything; there is no model."""
    config = EngineConfig(
        model=str(tmp_path / "none"), format="safetensors", socket_path="", tcp=Tcp("127.0.0.1", 0, SIDES.engine)
    )
    process = await EngineProcess.start([sys.executable, "-m", "engine"], config, {"PYTHONPATH": str(ROOT)})
    try:
        port = await process.port()
        reader, writer = await connect(Tcp("127.0.0.1", port, SIDES.gateway))
        assert await reader.readexactly(4)
        writer.transport.abort()
    finally:
        await process.stop()


async def test_one_that_ends_before_it_listens_says_why() -> None:
    config = EngineConfig(model="none", format="dummy", socket_path="", tcp=Tcp("", 0, SIDES.engine))
    command = fake_command("crash", "ImportError: gone")
    process = await EngineProcess.start(command, config, {"PYTHONPATH": str(ROOT)})
    with pytest.raises(EngineFailed, match="ended with code 5: ImportError: gone"):
        await process.port()
    await process.stop()


# certificates from files


def written(folder: Path, **texts: str) -> tuple[Path, Path, Path]:
    side = SIDES.engine
    for name, text in {"cert": side.certificate, "key": side.key, "ca": side.authority, **texts}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "cert", folder / "key", folder / "ca"


def test_certificates_from_files(tmp_path: Path) -> None:
    read = read_credentials(*written(tmp_path))
    assert read.engine == read.gateway == SIDES.engine


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"key": SIDES.gateway.key}, "key values mismatch"),
        ({"ca": "nothing"}, "no start line|they hold no certificates|not enough data"),
        ({"ca": ""}, "empty certificate data"),
        ({"ca": f"# é\n{SIDES.engine.authority}"}, "engine_tls_ca: .*ca has text that is not ASCII"),
        ({"key": encrypted(SIDES.engine.key)}, "the key has a passphrase"),
        ({"cert": SIDES.gateway.certificate, "key": SIDES.gateway.key}, "is not for the DNS name headrace-engine"),
    ],
)
def test_wrong_files_are_refused_without_telling_the_key(texts: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        read_credentials(*written(tmp_path, **texts))
    assert "PRIVATE" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    cert, key, _ = written(tmp_path)
    with pytest.raises(ConfigError, match=r"engine_tls_ca: cannot read .*elsewhere: No such file"):
        read_credentials(cert, key, tmp_path / "elsewhere")


def test_each_server_has_an_authority_of_its_own() -> None:
    other = make_credentials(datetime.now(UTC))
    assert other.engine.authority != SIDES.engine.authority
    load_pem_private_key(other.engine.key.encode(), None)
    assert "PRIVATE" not in msgspec.json.encode(other.engine.certificate).decode()
