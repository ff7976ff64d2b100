"""What `serve` has of Ray: launchers of engines, and the model where another gateway has chosen it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from gateway.cluster import registry, session
from gateway.cluster.attached import AttachLauncher
from gateway.cluster.certificates import Sides, make_credentials, read_credentials
from gateway.cluster.draining import leave_draining
from gateway.cluster.launcher import RayLauncher
from gateway.cluster.messages import Known, Order
from gateway.cluster.options import Share, num_replicas, share_of
from gateway.cluster.places import Places, fitting_nodes
from gateway.config import Config
from gateway.engines.handles import EngineLauncher
from gateway.errors import ModelError
from gateway.model.resolve import ModelRequest, ResolvedModel
from gateway.siblings.messages import Model
from scheduler.protocol import EngineConfig, Tcp


class Cluster:
    def __init__(self, config: Config) -> None:
        """Connects to it; blocks. Raises ConfigError or EngineFailed."""
        self._config = config
        self._known: Known | None = None  # of the server to which we attach ourselves
        self._registry: Any = None
        self._places: Places | None = None
        self._count = self._sharers = 1
        self._lives = count(1)
        self._launchers: list[RayLauncher] = []  # those of the last settings too: their engines may still run
        self._leaving: asyncio.Task[None] | None = None
        self._sides = None if config.attach else sides_of(config)
        session.connect(config.ray)
        if config.attach:
            self._known = registry.ask_known(config.attach)

    def model(self) -> ResolvedModel | None:
        """Of that server; None where the choice is ours. Raises ModelError."""
        if self._known is None:
            return None
        resolved = self._known.model.resolved()
        for path in (resolved.path, resolved.tokenizer):
            if path is not None and not path.exists():
                raise ModelError(f"the server {self._config.attach} has its model at {path}, and this machine does not")
        return resolved

    async def launchers(
        self, config: EngineConfig, request: ModelRequest, resolved: ResolvedModel
    ) -> Sequence[EngineLauncher]:
        """Of each engine. Raises ConfigError."""
        if self._known is not None:
            known, name = self._known, self._config.attach
            return [AttachLauncher(name, replica, known) for replica in range(known.replicas)]
        assert self._sides is not None
        resources = await asyncio.to_thread(session.resources)
        share = share_of(self._config, resources, width=self._config.tp)
        self._count = num_replicas(self._config, resources, share)
        self._sharers = sharers(self._count, share, await asyncio.to_thread(session.nodes))
        self._places = Places(share, session.nodes)
        known = Known(Model.of(resolved), self._count, self._sides.gateway)
        self._registry = await asyncio.to_thread(registry.create, self._config.ray_name, known)
        launchers = self.changed(config, request)
        self._leaving = asyncio.create_task(self._leave_draining(), name="draining nodes")
        return launchers

    def changed(self, config: EngineConfig, request: ModelRequest) -> Sequence[EngineLauncher]:
        """The same engines with other settings; from now on these are watched."""
        assert self._sides is not None and self._places is not None
        engine = msgspec.structs.replace(config, sharers=self._sharers, tcp=Tcp("", 0, self._sides.engine))
        order, how = Order(engine, request), (self._places, self._sides.gateway, self._registry, self._lives)
        made = [RayLauncher(replica, order, *how) for replica in range(self._count)]
        self._launchers[:] = [*self._launchers[-self._count :], *made]
        return made

    async def _leave_draining(self) -> None:
        await leave_draining(self._launchers, session.draining_nodes)

    def close(self) -> None:
        """Ends what is ours in the cluster. Blocks for a moment."""
        if self._leaving is not None:
            self._leaving.cancel()
        session.disconnect()


def sharers(replicas: int, share: Share, nodes: Mapping[str, Mapping[str, float]]) -> int:
    """Engines that share the CPUs of a machine. nodes: what each has; where an autoscaler has yet to bring one that
    fits, it is taken for one."""
    return 1 if share.num_gpus else math.ceil(replicas / max(1, len(fitting_nodes(nodes, share))))


def sides_of(config: Config) -> Sides:
    """Raises ConfigError."""
    if config.engine_tls_cert:
        return read_credentials(*map(Path, (config.engine_tls_cert, config.engine_tls_key, config.engine_tls_ca)))
    return make_credentials(datetime.now(UTC))
