"""Where engines run: a placement group of one bundle for each run of each replica, so all GPUs of an engine are on one
node, and each new run is free to go elsewhere."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gateway.cluster.host import EngineHost
from gateway.cluster.options import Share
from gateway.cluster.session import FAILURES, last_line
from gateway.engines.socket import EngineFailed

PLACE_S = 900.0  # an autoscaler may have to start a machine
PREFER_S = 3.0  # for a node with fewer replicas, which others may have filled
LEAVE_S = 2.0  # what goes on after it does so in a thread
LOOK_S = 1.0
TELL_S = 30.0  # between two lines of the log on waiting for a place
NODE_ID = "ray.io/node-id"  # a label that Ray gives each node

log = logging.getLogger("headrace.cluster")


class Place:
    """Resources of one node, and the actor in them."""

    def __init__(self, group: PlacementGroup, node_id: str, host: Any, left: Callable[[], None]) -> None:
        self.node_id = node_id
        self.host: Any = host  # an EngineHost's handle; None: left
        self._group = group
        self._left = left

    async def leave(self) -> None:
        """At once, with all that runs there. Asks Ray, for at most LEAVE_S. Safe to call again."""
        if self.host is None:
            return
        host, self.host = self.host, None
        self._left()
        await _give_back(self._group, host)


class Places:
    """Of all replicas of a server: each is put where fewest others are, for a node's end is the end of all there."""

    def __init__(self, share: Share, nodes: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """nodes: what each has, in use or not; blocks."""
        self._share = share
        self._nodes = nodes
        self._taken: dict[int, str] = {}  # replica -> node
        self._one_by_one = asyncio.Lock()

    async def take(self, replica: int) -> Place:
        """Waits where there is none. Raises EngineFailed if that takes too long, or if Ray fails."""
        try:
            return await self._take(replica)
        except FAILURES as error:
            raise EngineFailed("lost", f"Ray has no place for replica {replica}: {last_line(error)}") from error

    async def _take(self, replica: int) -> Place:
        async with self._one_by_one:
            group = await self._preferred()
            if group is not None:
                return await self._enter(replica, group)
        group = await self._any(replica)
        return await self._enter(replica, group)

    async def _preferred(self) -> PlacementGroup | None:
        """On a node with few replicas. None: there is no room."""
        crowded = crowded_nodes(await asyncio.to_thread(self._nodes), self._share, self._taken.values())
        elsewhere = [{NODE_ID: f"!in({','.join(sorted(crowded))})"}] if crowded else None
        group = await self._ask(elsewhere)
        try:
            if await asyncio.to_thread(group.wait, PREFER_S):
                return group
        except BaseException:
            await _give_back(group)
            raise
        await _give_back(group)
        return None

    async def _any(self, replica: int) -> PlacementGroup:
        group = await self._ask(None)
        clock = asyncio.get_running_loop().time
        began = told = clock()
        try:
            while not await asyncio.to_thread(group.wait, LOOK_S):
                if clock() - began > PLACE_S:
                    raise EngineFailed("lost", f"no node has had {self._share} free for replica {replica}")
                if clock() - told > TELL_S:
                    told = clock()
                    log.warning("replica %d waits for a node with %s free", replica, self._share)
        except BaseException:
            await _give_back(group)
            raise
        return group

    async def _ask(self, elsewhere: list[dict[str, str]] | None) -> PlacementGroup:
        bundles = [self._share.bundle]
        return await asyncio.to_thread(
            placement_group, bundles, strategy="STRICT_PACK", bundle_label_selector=elsewhere
        )

    async def _enter(self, replica: int, group: PlacementGroup) -> Place:
        try:
            table = await asyncio.to_thread(placement_group_table, group)
            node_id: str = table["bundles_to_node_id"][0]
            inside = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
            share = {"num_cpus": self._share.num_cpus, "num_gpus": self._share.num_gpus}
            host = ray.remote(EngineHost).options(**share, scheduling_strategy=inside).remote()
        except BaseException:
            await _give_back(group)
            raise
        self._taken[replica] = node_id

        def left() -> None:
            self._taken.pop(replica, None)

        return Place(group, node_id, host, left)


async def _give_back(group: PlacementGroup, host: Any = None) -> None:
    """With the actor in it. In a thread of its own, for Ray waits as long as its head is away: neither the event loop
    nor the end of this process does."""
    removing = threading.Thread(target=_remove, args=(group, host), name="leaving a place", daemon=True)
    removing.start()
    await asyncio.to_thread(removing.join, LEAVE_S)
    if removing.is_alive():
        log.warning("Ray has not taken a place back within %g s", LEAVE_S)


def _remove(group: PlacementGroup, host: Any) -> None:
    try:
        if host is not None:
            ray.kill(host)
    except FAILURES as error:
        log.warning("an engine's host was not ended: %s", last_line(error))
    try:
        remove_placement_group(group)
    except FAILURES as error:
        log.warning("a place was not given back: %s", last_line(error))


def fitting_nodes(nodes: Mapping[str, Mapping[str, float]], share: Share) -> list[str]:
    """That can hold an engine at all. nodes: what each has, in use or not."""
    needs = share.bundle.items()
    return [node for node, has in nodes.items() if all(has.get(what, 0.0) >= need for what, need in needs)]


def crowded_nodes(nodes: Mapping[str, Mapping[str, float]], share: Share, taken: Iterable[str]) -> frozenset[str]:
    """Those with more replicas than the one that has fewest. nodes: what each has. taken: one of them a replica."""
    fit = fitting_nodes(nodes, share)
    num = Counter(taken)
    least = min((num[node] for node in fit), default=0)
    return frozenset(node for node in fit if num[node] > least)
