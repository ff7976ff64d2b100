"""The port: taken before the model is loaded, opened once all is ready."""

from __future__ import annotations

import socket
from pathlib import Path

from gateway.http.stamps import ask_for_stamps

BACKLOG = 1024  # connections that wait to be accepted


class BindError(Exception):
    """The port cannot be had. One line that names host and port."""


def bind_shared(host: str, port: int) -> socket.socket:
    """A port for several processes, among whose listeners the system spreads connections. Raises BindError also where
    others of the kind have it already."""
    with bind(host, port) as probe:
        port = probe.getsockname()[1]
    return bind(host, port, shared=True)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Takes the port without listening: nobody else can have it, and nobody is accepted before we are ready.

    shared: but for others of this user who say the same.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BindError(f"cannot listen on {shown(host, port)}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted connections inherit it
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise BindError(f"cannot listen on {shown(host, port)}: {error.strerror}") from error
    return listener


def listen_beside(path: Path) -> socket.socket:
    """A unix socket that listens."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener


def listen(listener: socket.socket) -> None:
    ask_for_stamps(listener)
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another process, starting at the same time, was faster
        host, port = listener.getsockname()[:2]
        raise BindError(f"cannot listen on {shown(host, port)}: {error.strerror}") from error


def shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
