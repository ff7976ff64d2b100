"""/health and /stats in nanochat's terms. A worker there computes one request at a time; here it is a replica of the
model, which computes many: it is busy when one more would have to wait."""

from __future__ import annotations

from gateway.chat_web.types import Health, Stats, Worker
from gateway.metrics import NO_STATS
from gateway.services import Services

NUM_REPLICAS = 1


def health_of(services: Services) -> Health:
    is_ready = services.engine.ready is not None and not services.drain.draining
    return Health("ok", is_ready, NUM_REPLICAS, num_available(services))


def stats_of(services: Services) -> Stats:
    available = num_available(services)
    return Stats(NUM_REPLICAS, available, NUM_REPLICAS - available, [_worker(services)])


def num_available(services: Services) -> int:
    ready, stats = services.engine.ready, services.engine.stats or NO_STATS
    if ready is None or services.drain.draining:
        return 0
    has_room = services.live.num_sequences < ready.max_seqs and not stats.waiting
    return NUM_REPLICAS if has_room else 0


def _worker(services: Services) -> Worker:
    ready, stats = services.engine.ready, services.engine.stats or NO_STATS
    if ready is None:
        return Worker(0, "")
    return Worker(0, device_name(ready.device), stats.running, stats.waiting, ready.max_seqs)


def device_name(description: str) -> str:
    """As torch writes it, of what an engine says of its device for people, such as "cuda:0 (NVIDIA H100)"."""
    name = description.partition(" (")[0]
    return "cuda:0" if name == "cuda" else name
