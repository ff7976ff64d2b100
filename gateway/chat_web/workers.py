"""/health and /stats in nanochat's terms. A worker there computes one request at a time; here it is a replica of the
model, which computes many: it is busy when one more would have to wait."""

from __future__ import annotations

from gateway.chat_web.types import Health, State, Stats, Worker
from gateway.engine_metrics import NO_STATS
from gateway.engines.client import Replica
from gateway.services import Services


def health_of(services: Services) -> Health:
    is_ready = services.engine.ready is not None and not services.drain.draining
    return Health("ok", is_ready, len(services.engine.replicas), num_available(services))


def stats_of(services: Services) -> Stats:
    replicas, available = services.engine.replicas, num_available(services)
    workers = [_worker(number, replica) for number, replica in enumerate(replicas)]
    return Stats(len(replicas), available, len(replicas) - available, workers)


def num_available(services: Services) -> int:
    return 0 if services.drain.draining else sum(map(_has_room, services.engine.replicas))


def _has_room(replica: Replica) -> bool:
    ready, stats = replica.said, replica.stats or NO_STATS
    return ready is not None and not replica.is_draining and replica.num_open < ready.max_seqs and not stats.waiting


def _worker(number: int, replica: Replica) -> Worker:
    ready, stats = replica.said, replica.stats or NO_STATS
    if ready is None:
        return Worker(number, "", state="drained" if replica.is_draining else "down")
    state: State = "draining" if replica.is_draining else "up"
    return Worker(number, device_name(ready.device), stats.running, stats.waiting, ready.max_seqs, state)


def device_name(description: str) -> str:
    """As torch writes it, of what an engine says of its device for people, such as "cuda:0 (NVIDIA H100)"."""
    name = description.partition(" (")[0]
    return "cuda:0" if name == "cuda" else name
