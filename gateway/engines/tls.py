"""The way to an engine on another machine: TCP with certificates both ways."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import tempfile
from pathlib import Path

import msgspec

from gateway.engines.handles import Streams
from gateway.engines.socket import EngineFailed
from scheduler.protocol import ENGINE_NAME, KEEPALIVE, Credentials, Tcp

CONNECT_S = 10.0


async def connect(tcp: Tcp) -> Streams:
    """Raises OSError, which an SSLError and a TimeoutError are too. That the engine refuses our certificate is seen at
    the first read only."""
    context = client_context(tcp.credentials)
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await asyncio.open_connection(tcp.host, tcp.port, ssl=context, server_hostname=ENGINE_NAME)
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # asyncio itself sets TCP_NODELAY
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # macOS lacks one
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return reader, writer


async def reach(tcp: Tcp) -> Streams:
    """As an EngineHandle does. Raises EngineFailed."""
    try:
        return await connect(tcp)
    except OSError as error:
        raise EngineFailed("lost", f"cannot connect to the engine at {tcp.host}:{tcp.port}: {error}") from error


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """Raises ssl.SSLError for what is no certificate, or not that of this key, and ValueError for a key that has a
    passphrase."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=credentials.authority)
    with tempfile.NamedTemporaryFile("w") as file:  # ours alone; OpenSSL reads nothing but files
        file.write(f"{credentials.certificate}\n{credentials.key}")
        file.flush()
        context.load_cert_chain(file.name, password=_no_passphrase)
    return context


def _no_passphrase() -> str:
    """OpenSSL would ask a terminal."""
    raise ValueError("the key has a passphrase")


def lead_to(tcp: Tcp, path: Path) -> None:
    """For `open_engine`; the folder is private, for the key is in it."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(tcp))
    new.replace(path)


async def open_engine(path: Path) -> Streams:
    """By what an EngineHandle has put there. Raises OSError."""
    if path.is_socket():
        return await asyncio.open_unix_connection(path)
    return await connect(msgspec.json.decode(path.read_bytes(), type=Tcp))
