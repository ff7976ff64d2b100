"""How gateways get in: through a unix socket, or over TCP with a gateway's certificate of the same authority as ours.
Used by the I/O thread, which never waits for anybody."""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from scheduler.protocol import ENGINE_NAME, GATEWAY_NAME, KEEPALIVE, Credentials, EngineConfig, Tcp

log = logging.getLogger("headrace.engine")

# The kernel doubles it: a few steps of hundreds of sequences. What a socket holds cannot be merged any more.
SOCKET_BYTES = 8 << 10
TCP_SOCKET_BYTES = 32 << 10  # the same, and what the other machine has not confirmed yet
RECORD_BYTES = 1 << 14  # of TLS
HANDSHAKE_S = 10.0
MAX_HANDSHAKES = 64  # at a time; the oldest makes room
# One of these a gateway's certificate must have: an authority that signs others too does not let all of them in. The
# engine's is that of a certificate for both sides.
CLIENT_NAMES = frozenset({GATEWAY_NAME, ENGINE_NAME})


class Wire(Protocol):
    """A connection as a non-blocking socket has it: BlockingIOError where it cannot go on now, OSError at its end."""

    def fileno(self) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def close(self) -> None: ...


class Door(Protocol):
    listener: socket.socket

    def turn(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> Wire | None:
        """After an event of the listener, or of a socket that the door has registered itself. A connection that may
        speak from now on, and is in no selector."""

    def tire(self, selector: selectors.BaseSelector) -> None:
        """Now and then: lets go of those who stand in the door for too long."""

    def close(self, selector: selectors.BaseSelector) -> None: ...


def door_of(config: EngineConfig) -> Door:
    return UnixDoor(config.socket_path) if config.tcp is None else TlsDoor(config.tcp)


class UnixDoor:
    """Who finds the path may come in."""

    def __init__(self, path: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()
        self.listener.setblocking(False)

    def turn(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> Wire | None:
        try:
            sock, _ = self.listener.accept()
        except OSError as error:  # as over TCP
            log.warning("cannot accept a connection: %s", error)
            return None
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        return sock

    def tire(self, selector: selectors.BaseSelector) -> None:
        """Nobody stands in it."""

    def close(self, selector: selectors.BaseSelector) -> None:
        self.listener.close()


@dataclass(frozen=True, slots=True)
class _Handshake:
    sock: ssl.SSLSocket
    who: str
    deadline: float


class TlsDoor:
    """Who has no certificate of our authority for a gateway is refused, and so is who says nothing."""

    def __init__(self, tcp: Tcp, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = _context(tcp.credentials)
        self._clock = clock
        self._handshakes: dict[int, _Handshake] = {}  # by file descriptor, in order of arrival
        family = socket.AF_INET6 if ":" in tcp.host else socket.AF_INET
        self.listener = socket.create_server((tcp.host, tcp.port), family=family)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        log.info("listening on port %d", self.port, extra={"port": self.port})

    def turn(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> Wire | None:
        if not isinstance(key.data, _Handshake):
            return self._accept(selector)
        return self._go_on(selector, key.data)

    def _accept(self, selector: selectors.BaseSelector) -> Wire | None:
        try:
            sock, (host, port, *_) = self.listener.accept()
        except OSError as error:  # it has left already, or there are no more files
            log.warning("cannot accept a connection: %s", error)
            return None
        who = f"{host}:{port}"
        try:
            _prepare(sock)
            wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            sock.close()
            log.info("the connection of %s ended: %s", who, error)
            return None
        if len(self._handshakes) >= MAX_HANDSHAKES:
            self._refuse(selector, next(iter(self._handshakes.values())), "too many others came after it")
        handshake = _Handshake(wrapped, who, self._clock() + HANDSHAKE_S)
        self._handshakes[wrapped.fileno()] = handshake
        selector.register(wrapped, selectors.EVENT_READ, handshake)
        return None

    def _go_on(self, selector: selectors.BaseSelector, handshake: _Handshake) -> Wire | None:
        if self._handshakes.get(handshake.sock.fileno()) is not handshake:
            return None  # it made room for a newcomer after the selector had told of both
        try:
            handshake.sock.do_handshake()
        except ssl.SSLWantReadError:
            selector.modify(handshake.sock, selectors.EVENT_READ, handshake)
        except ssl.SSLWantWriteError:
            selector.modify(handshake.sock, selectors.EVENT_WRITE, handshake)
        except OSError as error:
            self._refuse(selector, handshake, _words(error))
        else:
            if CLIENT_NAMES.isdisjoint(_names(handshake.sock)):
                self._refuse(
                    selector, handshake, f"its certificate has none of the names {' and '.join(sorted(CLIENT_NAMES))}"
                )
                return None
            self._forget(selector, handshake)
            return TlsWire(handshake.sock)
        return None

    def tire(self, selector: selectors.BaseSelector) -> None:
        while self._handshakes:
            oldest = next(iter(self._handshakes.values()))
            if oldest.deadline > self._clock():
                return
            self._refuse(selector, oldest, f"no handshake within {HANDSHAKE_S:g} s")

    def close(self, selector: selectors.BaseSelector) -> None:
        for handshake in list(self._handshakes.values()):
            self._forget(selector, handshake)
            handshake.sock.close()
        self.listener.close()

    def _forget(self, selector: selectors.BaseSelector, handshake: _Handshake) -> None:
        selector.unregister(handshake.sock)
        del self._handshakes[handshake.sock.fileno()]

    def _refuse(self, selector: selectors.BaseSelector, handshake: _Handshake, why: str) -> None:
        log.warning("refused a connection of %s: %s", handshake.who, why)
        self._forget(selector, handshake)
        handshake.sock.close()


class TlsWire:
    """The step loop sends while the I/O thread reads, and OpenSSL takes one call at a time.

    TLS 1.3 lets reading wait for writing only to answer a change of keys, which gateways do not ask for; it would go on
    with the next write, at the latest with a pulse.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self, size: int, /) -> bytes:
        with self._lock:
            try:
                data = self._sock.recv(size)
                while left := self._sock.pending():  # is in no socket any more, so no selector would tell of it
                    data += self._sock.recv(left)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise BlockingIOError from None
        return data

    def send(self, data: bytes, /) -> int:
        """What it did not take must come again as the beginning of the next call, which may be shorter: so OpenSSL is
        given a record at a time, for of a part that it could not write it wants as much again."""
        sent = 0
        with self._lock:
            while sent < len(data):
                try:
                    sent += self._sock.send(data[sent : sent + RECORD_BYTES])
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    break
        if not sent:
            raise BlockingIOError
        return sent

    def close(self) -> None:
        self._sock.close()


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # connections last: there is nothing to resume
    context.load_verify_locations(cadata=credentials.authority)
    with tempfile.NamedTemporaryFile("w") as file:  # ours alone; OpenSSL reads nothing but files
        file.write(f"{credentials.certificate}\n{credentials.key}")
        file.flush()
        context.load_cert_chain(file.name, password=_no_passphrase)
    return context


def _no_passphrase() -> str:
    """OpenSSL would ask a terminal. Gateways refuse such keys before they come to us."""
    raise ValueError("the key has a passphrase")


def _names(sock: ssl.SSLSocket) -> set[str]:
    """DNS names of the other side's certificate, which has been verified."""
    certificate = sock.getpeercert() or {}
    named: Any = certificate.get("subjectAltName", ())
    return {name for kind, name in named if kind == "DNS"}


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TCP_SOCKET_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # macOS lacks one
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)
