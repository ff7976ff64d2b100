"""A whole server in a thread whose engine says what a test wants, as far as the test lets it."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.answers.reasoning import ReasoningFormat
from gateway.http.app import create_app
from gateway.http.ending import Signals
from gateway.http.keys import Keys
from gateway.http.lifecycle import Server
from gateway.http.port import bind
from gateway.services import HttpSettings, Services
from scheduler.protocol import Submit
from tests.fixtures.fakes import ASSISTANT, EOS, SYSTEM, USER, FakeEngine, Script, toy_model, toy_services

PATIENCE_S = 20.0
ROLES = {USER: "user", SYSTEM: "system", ASSISTANT: "assistant"}


@dataclass
class SayingEngine(FakeEngine):
    """Says `says`, a word an output; `allowed`: how many outputs it may yet give, None: all."""

    says: str = "Hello"
    finish: Any = "stop"
    allowed: int | None = None
    refuses: Callable[[], Exception | None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.script = lambda submit, choice: spoken(self.says, self.finish)
        self.refusal = lambda submit: self.refuses()

    def _turn(self) -> None:
        if self.allowed == 0:
            return  # until it is allowed more
        if self.allowed is not None:
            self.allowed -= 1
        super()._turn()

    def allow(self, outputs: int | None) -> None:
        self.allowed = outputs
        if self.playing:
            self._turn()


def spoken(text: str, finish: Any) -> Script:
    words = [list(word.encode()) for word in re.findall(r"\s*\S+|\s+$", text)]
    return Script([*words, [EOS]] if finish == "stop" else words, finish)


class ChatServer:
    def __init__(self, engine: SayingEngine) -> None:
        self.engine = engine
        self.loop = asyncio.new_event_loop()
        self.url = ""

    def now(self, change: Callable[[], object]) -> None:
        """On the server's loop, and done when this returns."""

        async def changed() -> None:
            change()

        asyncio.run_coroutine_threadsafe(changed(), self.loop).result(PATIENCE_S)

    def says(self, text: str, allowed: int | None = None, finish: str = "stop") -> None:
        def change() -> None:
            self.engine.says, self.engine.allowed, self.engine.finish = text, allowed, finish

        self.now(change)

    def allow(self, outputs: int | None = None) -> None:
        self.now(lambda: self.engine.allow(outputs))

    def refuses(self, error: Exception | None) -> None:
        self.now(lambda: setattr(self.engine, "refuses", lambda: error))

    @property
    def last(self) -> Submit:
        return self.engine.submitted[-1]

    @property
    def asked(self) -> list[tuple[str, str]]:
        """The messages of the last prompt."""
        found: list[tuple[str, str]] = []
        text = bytearray()
        for token in self.last.prompt:
            if token in ROLES:
                text = bytearray()
                found.append((ROLES[token], ""))
            elif token != EOS:
                text.append(token)
            if found:
                found[-1] = (found[-1][0], text.decode(errors="replace"))
        return found[:-1] if found and found[-1] == ("assistant", "") else found


@contextmanager
def chat_server(
    key: str | None = None, has_template: bool = True, settings: HttpSettings | None = None
) -> Iterator[ChatServer]:
    engine = SayingEngine()
    model = toy_model(reasoning=ReasoningFormat(), **({} if has_template else {"chat_template": None}))
    keys = Keys(key, None, time.monotonic) if key else None
    services = replace(
        toy_services(engine, model, migration=False), clock=time.monotonic, wall_clock=time.time, keys=keys
    )
    if settings is not None:
        services = replace(services, settings=settings)
    server = ChatServer(engine)
    opened, signals = threading.Event(), Signals()
    thread = threading.Thread(target=_serve, args=(server, services, signals, opened))
    thread.start()
    try:
        assert opened.wait(PATIENCE_S)
        yield server
    finally:
        server.now(lambda: (signals.stop.set(), signals.hurry.set()))
        thread.join(PATIENCE_S)
        server.loop.close()
        assert not thread.is_alive()


def _serve(server: ChatServer, services: Services, signals: Signals, opened: threading.Event) -> None:
    listener = bind("127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    forever: Callable[[], Any] = asyncio.Event().wait
    running = Server(create_app(services), listener, services.drain, signals, 1.0, forever)
    server.loop.run_until_complete(running.run(opened.set))
