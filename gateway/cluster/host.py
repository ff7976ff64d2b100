"""A Ray actor beside each engine: starts it on its node, sees how it ends, and takes it along when it ends itself."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import ray

from gateway.cluster.messages import Answer, Ended, Fetched, Order, Refused, Started
from gateway.engines.process import EngineProcess
from gateway.engines.socket import EngineFailed
from gateway.engines.supervisor import ENGINE_COMMAND
from gateway.errors import ModelError
from gateway.logs import configure_logging
from gateway.model.resolve import resolve_model
from scheduler.protocol import Tcp

OF_RAY = frozenset({"OMP_NUM_THREADS"})  # which it sets for its own workers; engines choose for themselves


class EngineHost:
    """An asyncio actor, used once. The engine's standard input ends with this process, and that is its end."""

    def __init__(self) -> None:
        configure_logging("info", "text")  # into the files that Ray keeps of its workers
        self._engine: EngineProcess | None = None
        self._model: str | None = None  # its path on this node
        self._folder: str | None = None  # of files by which the engine's ranks find each other

    async def fetch(self, order: bytes) -> bytes:
        """First: an Answer, once the model is on this node."""
        try:
            asked = msgspec.json.decode(order, type=Order)
            self._model = await asyncio.to_thread(model_here, asked, ray.util.get_node_ip_address())
            answer: Answer = Fetched()
        except EngineFailed as failure:
            answer = Refused(failure.kind, failure.message)
        return msgspec.json.encode(answer)

    async def start(self, order: bytes) -> bytes:
        """Then: an Answer, once the engine can be connected to."""
        try:
            answer: Answer = await self._start(msgspec.json.decode(order, type=Order))
        except EngineFailed as failure:
            answer = Refused(failure.kind, failure.message)
            self._tidy()
        return msgspec.json.encode(answer)

    async def _start(self, order: Order) -> Started:
        address, asked = ray.util.get_node_ip_address(), order.config
        assert asked.tcp is not None and self._model is not None
        config = msgspec.structs.replace(
            asked,
            model=self._model,
            tcp=Tcp(address, 0, asked.tcp.credentials),
            socket_path=str(Path(self._new_folder()) / "engine.sock"),
        )
        environ = {name: value for name, value in os.environ.items() if name not in OF_RAY}
        self._engine = await EngineProcess.start(ENGINE_COMMAND, config, environ)
        return Started(address, await self._engine.port(), ray.get_runtime_context().get_node_id())

    async def run(self) -> bytes:
        """Until the engine has ended: an Ended."""
        assert self._engine is not None, "run before start"
        while (words := await self._engine.last_words()) is None:
            logging.getLogger("headrace.cluster").debug("the engine runs")
        self._tidy()
        return msgspec.json.encode(Ended(words, self._engine.was_killed))

    async def lives(self) -> bool:
        return True

    async def stop(self) -> None:
        if self._engine is not None:
            await self._engine.stop()
        self._tidy()

    async def kill(self) -> None:
        if self._engine is not None:
            self._engine.kill()

    def _new_folder(self) -> str:
        """Of this engine alone: ranks that read what others have left would wait for them."""
        self._folder = tempfile.mkdtemp(prefix="headrace-")
        return self._folder

    def _tidy(self) -> None:
        """After the engine's end."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def model_here(order: Order, node: str) -> str:
    """The same path as on the gateway's machine, or what this node has under the name. Raises EngineFailed."""
    path = order.config.model
    if Path(path).exists():
        return path
    try:
        return str(resolve_model(order.request, os.environ).path.resolve())
    except ModelError as error:
        raise EngineFailed(
            "model",
            f"the model is not on node {node}: there is no {path}, and {error}. Put it at the same path on every node, "
            "on a file system that all share, or name one that is on the hub.",
        ) from error
