"""The port: taken before the model is loaded, opened once all is ready."""

from __future__ import annotations

import socket

BACKLOG = 1024  # connections that wait to be accepted


class BindError(Exception):
    """The port cannot be had. One line that names host and port."""


def bind(host: str, port: int) -> socket.socket:
    """Takes the port without listening: nobody else can have it, and nobody is accepted before we are ready."""
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
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise BindError(f"cannot listen on {shown(host, port)}: {error.strerror}") from error
    return listener


def listen(listener: socket.socket) -> None:
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another process, starting at the same time, was faster
        host, port = listener.getsockname()[:2]
        raise BindError(f"cannot listen on {shown(host, port)}: {error.strerror}") from error


def shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
