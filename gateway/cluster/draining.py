"""Engines leave nodes that Ray is about to remove, before it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import ray.exceptions

from gateway.cluster.launcher import RayLauncher

PERIOD_S = 2.0

log = logging.getLogger("headrace.cluster")


async def leave_draining(launchers: Sequence[RayLauncher], draining: Callable[[], frozenset[str]]) -> None:
    """Never returns, as long as Ray tells. draining: ids of nodes; blocks. One engine at a time, so that others can
    take over what it does."""
    while True:
        await asyncio.sleep(PERIOD_S)
        try:
            nodes = await asyncio.to_thread(draining)
        except (AttributeError, ImportError) as error:
            log.warning("this version of Ray does not tell which nodes it drains: %s", error)
            return
        except ray.exceptions.RayError as error:
            log.warning("Ray does not tell which nodes it drains: %s", error)
            continue
        for launcher in launchers:
            engine = launcher.engine
            if engine is not None and engine.node_id in nodes and engine.leave():
                log.warning("replica %d leaves node %s, which is to be removed", launcher.replica, engine.node_id)
                break
