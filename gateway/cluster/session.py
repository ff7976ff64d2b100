"""The connection to Ray, and what it tells of its nodes. All block: called in threads, or before the event loop."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gateway.engines.socket import EngineFailed

NAMESPACE = "headrace"
LOCAL = "local"  # an address: start a cluster of this machine, which ends with us
# What a question to Ray may end with: not all of its functions say so by a RayError when its head is away for a moment.
FAILURES = (ray.exceptions.RayError, RuntimeError, LookupError, ValueError, OSError)

log = logging.getLogger("headrace.cluster")


def connect(address: str) -> None:
    """Raises EngineFailed."""
    before = signal.getsignal(signal.SIGTERM)
    here: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that we start: it is nobody else's business
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=False,
            **here,
        )
    except (ConnectionError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        raise EngineFailed("internal", f"cannot connect to Ray at {address}: {first_line(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray has one of its own, which would end us


def disconnect() -> None:
    ray.shutdown()


def resources() -> dict[str, float]:
    """Of all nodes, whether in use or not."""
    return dict(ray.cluster_resources())


def nodes() -> dict[str, dict[str, float]]:
    """What each node that lives has, in use or not, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def on_this_node() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def draining_nodes() -> frozenset[str]:
    """Ids of nodes that Ray is about to remove. No public function tells of them; Ray Serve and Ray Data ask this."""
    import ray._private.state as state

    ask: Callable[[], dict[str, int]] = state.state.get_draining_nodes
    return frozenset(ask())


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """Of a remote exception, which names what went wrong."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
