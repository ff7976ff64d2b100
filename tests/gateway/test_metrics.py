"""Series: their names, their bounded labels, and that they count what happened."""

import re
from typing import Any

import httpx
import msgspec
import pytest

from gateway.metrics import NO_STATS, Metrics
from scheduler.protocol import EngineStats, StepRecord
from tests.fixtures.fakes import MODEL, FakeEngine, client_of, toy_services

NAMES = """
aborts batch_size e2e_seconds engine_restarts engine_up failed_steps generation_tokens inter_token_seconds
kv_blocks_cached kv_blocks_total kv_blocks_used preemptions prefill_seconds prefix_hits prefix_queries prompt_tokens
prompt_tokens_cached queue_seconds rate_limited recomputed_tokens rejections request_generation_tokens
request_prompt_tokens requests requests_running requests_waiting step_seconds step_tokens steps streams_open
tpot_seconds ttft_seconds waiting_tokens
"""


def stats(**changes: int) -> EngineStats:
    return msgspec.structs.replace(NO_STATS, **changes)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"headrace_{name}", labels)


def test_names_are_what_dashboards_ask_for() -> None:
    names = {family.name for family in Metrics().registry.collect()}
    assert names == {f"headrace_{name}" for name in NAMES.split()}


def test_no_creation_times() -> None:
    assert b"_created" not in Metrics().render()


def test_gauges_are_what_the_engine_said_last() -> None:
    metrics = Metrics()
    metrics.on_stats(stats(running=3, waiting=2, waiting_tokens=50, blocks_used=7, blocks_cached=8, blocks_total=20))
    assert [value(metrics, name) for name in ("requests_running", "requests_waiting", "waiting_tokens")] == [3, 2, 50]
    assert [value(metrics, f"kv_blocks_{name}") for name in ("used", "cached", "total")] == [7, 8, 20]


def test_counters_grow_by_differences() -> None:
    metrics = Metrics()
    for steps, preemptions in ((5, 1), (5, 1), (9, 4)):
        metrics.on_stats(stats(steps=steps, preemptions=preemptions))
    assert (value(metrics, "steps_total"), value(metrics, "preemptions_total")) == (9, 4)


@pytest.mark.parametrize("announced", [True, False])
def test_counters_go_on_over_an_engines_restart(announced: bool) -> None:
    metrics = Metrics()
    metrics.on_stats(stats(steps=10, prefix_hits=100))
    if announced:
        metrics.engine_restarted()
    metrics.on_stats(stats(steps=4, prefix_hits=30))
    assert (value(metrics, "steps_total"), value(metrics, "prefix_hits_total")) == (14, 130)
    assert value(metrics, "engine_restarts_total") == int(announced)


def test_a_dead_engine_runs_nothing() -> None:
    metrics = Metrics()
    metrics.engine_up(True)
    metrics.on_stats(stats(running=3, waiting=2))
    metrics.engine_up(False)
    assert [value(metrics, name) for name in ("engine_up", "requests_running", "requests_waiting")] == [0, 0, 0]


def test_steps() -> None:
    metrics = Metrics()
    metrics.on_step(StepRecord("decode", 4, 4, 0.01))
    assert value(metrics, "step_seconds_sum", kind="decode") == 0.01
    assert (value(metrics, "step_tokens_sum"), value(metrics, "batch_size_sum")) == (4, 4)


def test_labels_from_outside_are_bounded() -> None:
    metrics = Metrics()
    metrics.rejected("a code of a newer engine")
    metrics.request_ended("/some/path", "odd", 1.0)
    assert value(metrics, "rejections_total", reason="other") == 1
    assert value(metrics, "requests_total", endpoint="other", outcome="other") == 1


async def test_a_request_is_counted_to_the_token() -> None:
    services = toy_services(FakeEngine(cached_tokens=2))
    metrics = services.metrics
    async with client_of(services) as client:
        body: dict[str, Any] = {"model": MODEL, "prompt": ["abc", "d"], "n": 2}
        usage = (await client.post("/v1/completions", json=body)).json()["usage"]
    assert value(metrics, "prompt_tokens_total") == usage["prompt_tokens"] == 4
    assert value(metrics, "prompt_tokens_cached_total") == usage["prompt_tokens_details"]["cached_tokens"] == 4
    assert value(metrics, "generation_tokens_total") == usage["completion_tokens"] == 24
    assert value(metrics, "requests_total", endpoint="completions", outcome="stop") == 1
    counts = {"ttft_seconds": 1, "inter_token_seconds": 20, "tpot_seconds": 4, "e2e_seconds": 1}
    counts |= {"queue_seconds": 2, "prefill_seconds": 2, "request_prompt_tokens": 2, "request_generation_tokens": 4}
    assert {name: value(metrics, f"{name}_count") for name in counts} == counts
    assert value(metrics, "queue_seconds_sum") == pytest.approx(0.02)


async def test_paths_and_methods_make_no_new_series(client: httpx.AsyncClient) -> None:
    for path in ("/a", "/b", "/v1/models/x", "/v1/models/y"):
        await client.get(path)
        await client.request("ODD", path)
    text = (await client.get("/metrics")).text
    endpoints = set(re.findall(r'headrace_requests_total{endpoint="(\w+)"', text))
    assert endpoints == {"other", "models"}
