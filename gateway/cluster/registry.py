"""A named actor that tells other gateways where a server's engines are, and with what certificate to come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import ray

from gateway.cluster.messages import Ended, Known, Life
from gateway.cluster.session import FAILURES, NAMESPACE, last_line, on_this_node
from gateway.config import ConfigError
from gateway.engines.socket import EngineFailed

WAIT_S = 20.0  # that one question may take
NAME_S = 60.0  # the name of a server that was killed is free again when Ray has seen its end
TRY_S = 1.0


class Registry:
    """An asyncio actor on the first gateway's node, whose end is its own."""

    def __init__(self, known: bytes) -> None:
        self._known = known
        self._lives: dict[int, Life] = {}  # the last of each replica
        self._changed = asyncio.Condition()

    async def known(self) -> bytes:
        return self._known

    async def lives(self, replica: int, number: int, host: str, port: int) -> None:
        await self._set(replica, Life(number, host, port))

    async def ended(self, replica: int, number: int, ended: bytes) -> None:
        life = self._lives.get(replica)
        if life is not None and life.number == number:
            how = msgspec.json.decode(ended, type=Ended)
            await self._set(replica, msgspec.structs.replace(life, ended=how))

    async def next_life(self, replica: int, after: int) -> bytes | None:
        """A Life with a larger number, that has not ended. None: not yet."""
        return await self._when(replica, lambda life: life.number > after and life.ended is None, WAIT_S)

    async def end_of(self, replica: int, number: int, within_s: float) -> bytes | None:
        """That Life once it has ended, or a later one. None: not yet."""
        return await self._when(replica, lambda life: life.number > number or life.ended is not None, within_s)

    async def _set(self, replica: int, life: Life) -> None:
        async with self._changed:
            self._lives[replica] = life
            self._changed.notify_all()

    async def _when(self, replica: int, holds: Callable[[Life], bool], within_s: float) -> bytes | None:
        def seen() -> bool:
            life = self._lives.get(replica)
            return life is not None and holds(life)

        try:
            async with asyncio.timeout(within_s), self._changed:
                await self._changed.wait_for(seen)
        except TimeoutError:
            return None
        return msgspec.json.encode(self._lives[replica])


def create(name: str, known: Known) -> Any:
    """Its handle; it ends with this process. Blocks. Raises ConfigError where the name is taken."""
    options = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "scheduling_strategy": on_this_node()}
    deadline = time.monotonic() + NAME_S
    while True:
        try:
            return ray.remote(Registry).options(**options).remote(msgspec.json.encode(known))
        except ValueError:
            if time.monotonic() > deadline:
                raise ConfigError(f"ray_name: there is a server named {name} in this cluster already") from None
            time.sleep(TRY_S)


def find(name: str) -> Any:
    """Its handle. Blocks. Raises EngineFailed."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        raise EngineFailed("lost", f"there is no server named {name} in this cluster") from None
    except FAILURES as error:
        raise EngineFailed("lost", f"Ray cannot tell of the server named {name}: {last_line(error)}") from error


def ask_known(name: str) -> Known:
    """Blocks. Raises EngineFailed."""
    try:
        return msgspec.json.decode(ray.get(find(name).known.remote(), timeout=WAIT_S), type=Known)
    except FAILURES as error:
        raise EngineFailed("lost", f"the server named {name} does not answer") from error
