"""Where engines run: a placement group of one bundle for each run of each replica, so all GPUs of an engine are on one
node, and each new run is free to go elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gateway.cluster.host import EngineHost
from gateway.cluster.options import Share
from gateway.engines.socket import EngineFailed

PLACE_S = 900.0  # an autoscaler may have to start a machine
PREFER_S = 3.0  # for a node with fewer replicas, which others may have filled
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

    def leave(self) -> None:
        """At once, with all that runs there. Asks Ray, and does not wait. Safe to call again."""
        if self.host is None:
            return
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self.host)
            remove_placement_group(self._group)
        self.host = None
        self._left()


class Places:
    """Of all replicas of a server: each is put where fewest others are, for a node's end is the end of all there."""

    def __init__(self, share: Share, nodes: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """nodes: what each has, in use or not; blocks."""
        self._share = share
        self._nodes = nodes
        self._taken: dict[int, str] = {}  # replica -> node
        self._one_by_one = asyncio.Lock()

    async def take(self, replica: int) -> Place:
        """Waits where there is none. Raises EngineFailed if that takes too long."""
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
            remove_placement_group(group)
            raise
        remove_placement_group(group)
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
            remove_placement_group(group)
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
        except BaseException:
            remove_placement_group(group)
            raise
        node_id: str = table["bundles_to_node_id"][0]
        inside = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        share = {"num_cpus": self._share.num_cpus, "num_gpus": self._share.num_gpus}
        host = ray.remote(EngineHost).options(**share, scheduling_strategy=inside).remote()
        self._taken[replica] = node_id

        def left() -> None:
            self._taken.pop(replica, None)

        return Place(group, node_id, host, left)


def crowded_nodes(nodes: Mapping[str, Mapping[str, float]], share: Share, taken: Iterable[str]) -> frozenset[str]:
    """Those with more replicas than the one that has fewest. nodes: what each has. taken: one of them a replica."""
    needs = share.bundle.items()
    fit = [node for node, has in nodes.items() if all(has.get(what, 0.0) >= need for what, need in needs)]
    num = Counter(taken)
    least = min((num[node] for node in fit), default=0)
    return frozenset(node for node in fit if num[node] > least)
