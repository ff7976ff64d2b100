"""Series: their names, their bounded labels, and that they count what happened."""

import re
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gateway.engine_metrics import NO_STATS, STEP_KINDS, WAIT_REASONS
from gateway.gpus import GpuCollector
from gateway.http.app import create_app
from gateway.http.lag import watch_lag
from gateway.metrics import ASKED_ANYWHERE, MAX_TENANTS, OUTCOMES, Metrics
from scheduler.protocol import EngineStats, StepRecord
from scheduler.types import Rejected
from tests.fixtures.fakes import MODEL, FakeEngine, client_of, post, toy_ready, toy_services

NAMES = """
aborts batch_size choices decode_seconds e2e_seconds engine_draining engine_restarts engine_up event_loop_lag_seconds
failed_steps gateway_restarts gateways generation_tokens inter_token_seconds kv_blocks kv_blocks_cached kv_blocks_used
migration_seconds migrations preemptions prefill_seconds
prefix_hits prefix_queries prompt_tokens prompt_tokens_cached queue_seconds rate_limited recomputed_tokens rejections
request_generation_tokens request_longest_generation_tokens request_prompt_tokens requests requests_running
requests_waiting step_seconds step_tokens steps streams_open tenant_generation_tokens tenant_prompt_tokens
tenant_requests tpot_seconds ttft_met_to_predicted_ratio ttft_seconds waiting_tokens
"""
OF_ENGINES = """
batch_size engine_draining engine_restarts engine_up failed_steps kv_blocks kv_blocks_cached kv_blocks_used preemptions
prefix_hits prefix_queries recomputed_tokens requests_running requests_waiting step_seconds step_tokens steps
waiting_tokens
"""
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"

# What the panels of vLLM's main dashboard query (examples/observability/prometheus_grafana in its repository).
ASKED_OF_VLLM = """
e2e_request_latency_seconds_bucket e2e_request_latency_seconds_sum e2e_request_latency_seconds_count
prompt_tokens_total generation_tokens_total inter_token_latency_seconds_bucket inter_token_latency_seconds_sum
inter_token_latency_seconds_count num_requests_running num_requests_waiting time_to_first_token_seconds_bucket
time_to_first_token_seconds_sum time_to_first_token_seconds_count kv_cache_usage_perc request_prompt_tokens_bucket
request_generation_tokens_bucket request_success_total request_queue_time_seconds_sum
request_prefill_time_seconds_sum request_decode_time_seconds_sum request_max_num_generation_tokens_sum
"""


def stats(**changes: int) -> EngineStats:
    return msgspec.structs.replace(NO_STATS, **changes)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    registries = metrics.registry, metrics.engines[0].registry
    found = [registry.get_sample_value(f"headrace_{name}", labels) for registry in registries]
    return next((each for each in found if each is not None), None)


def test_names_are_what_dashboards_ask_for() -> None:
    names = {family.name for family in Metrics().collect()}
    assert {name for name in names if not name.startswith("process_")} == {f"headrace_{name}" for name in NAMES.split()}
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"} <= names


def test_no_creation_times() -> None:
    assert b"_created" not in Metrics().render()[0]


def test_gauges_are_what_the_engine_said_last() -> None:
    metrics = Metrics()
    metrics.engines[0].on_stats(
        stats(running=3, waiting=2, waiting_tokens=50, blocks_used=7, blocks_cached=8, blocks_total=20)
    )
    assert [value(metrics, name) for name in ("requests_running", "waiting_tokens")] == [3, 50]
    assert value(metrics, "requests_waiting", reason="step") == 2
    assert [value(metrics, name) for name in ("kv_blocks_used", "kv_blocks_cached", "kv_blocks")] == [7, 8, 20]


def waiting(metrics: Metrics) -> dict[str, float]:
    found = {reason: value(metrics, "requests_waiting", reason=reason) for reason in WAIT_REASONS}
    return {reason: count for reason, count in found.items() if count}


def test_who_waits_is_told_by_what_for() -> None:
    metrics = Metrics()
    metrics.engines[0].on_stats(msgspec.structs.replace(stats(waiting=9, parked=3, compiling=2), waits_for="blocks"))
    assert waiting(metrics) == {"blocks": 6, "choice": 3, "grammar": 2}
    metrics.engines[0].on_stats(msgspec.structs.replace(stats(waiting=4, overtaken=1), waits_for="rows"))
    assert waiting(metrics) == {"rows": 3, "fairness": 1}


def test_counters_grow_by_differences() -> None:
    metrics = Metrics()
    for steps, preemptions in ((5, 1), (5, 1), (9, 4)):
        metrics.engines[0].on_stats(stats(steps=steps, preemptions=preemptions))
    assert (value(metrics, "steps_total"), value(metrics, "preemptions_total")) == (9, 4)


@pytest.mark.parametrize("announced", [True, False])
def test_counters_go_on_over_an_engines_restart(announced: bool) -> None:
    metrics = Metrics()
    metrics.engines[0].on_stats(stats(steps=10, prefix_hits=100))
    if announced:
        metrics.engines[0].engine_restarted()
    metrics.engines[0].on_stats(stats(steps=4, prefix_hits=30))
    assert (value(metrics, "steps_total"), value(metrics, "prefix_hits_total")) == (14, 130)
    assert value(metrics, "engine_restarts_total") == int(announced)


def test_a_dead_engine_runs_nothing() -> None:
    metrics = Metrics()
    metrics.engines[0].engine_up(True)
    metrics.engines[0].on_stats(stats(running=3, waiting=2))
    metrics.engines[0].engine_up(False)
    assert [value(metrics, name) for name in ("engine_up", "requests_running")] == [0, 0]
    assert waiting(metrics) == {}


def test_steps() -> None:
    metrics = Metrics()
    metrics.engines[0].on_step(StepRecord("decode", 4, 4, 0.01))
    assert value(metrics, "step_seconds_sum", kind="decode") == 0.01
    assert (value(metrics, "step_tokens_sum"), value(metrics, "batch_size_sum")) == (4, 4)


def test_labels_from_outside_are_bounded() -> None:
    metrics = Metrics()
    metrics.rejected("a code of a newer engine")
    metrics.request_ended("/some/path", "odd", 1.0, "r")
    assert value(metrics, "rejections_total", reason="other") == 1
    assert value(metrics, "requests_total", endpoint="other", outcome="other") == 1


def samples(metrics: Metrics) -> set[tuple[str, str]]:
    return {(each.name, str(each.labels)) for family in metrics.collect() for each in family.samples}


@pytest.mark.parametrize("endpoint", ["completions", "embeddings"])
def test_an_endpoint_that_was_asked_once_has_all_its_series(endpoint: str) -> None:
    """And there are no more of them however long a server lives."""
    metrics = Metrics()
    metrics.request_ended(endpoint, "ok", 1.0, "r")
    before = samples(metrics)
    assert value(metrics, "requests_total", endpoint=endpoint, outcome="error") == 0
    for outcome in OUTCOMES:
        metrics.request_ended(endpoint, outcome, 1.0, "r")
    for kind in STEP_KINDS:
        metrics.engines[0].on_step(StepRecord(kind, 4, 4, 0.01))
    assert samples(metrics) == before


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_the_first_error_of_all_is_an_increase(endpoint: str) -> None:
    assert value(Metrics(), "requests_total", endpoint=endpoint, outcome="error") == 0


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
    assert value(metrics, "choices_total", finish_reason="stop") == 4
    assert value(metrics, "request_longest_generation_tokens_sum") == 6
    counts = {"ttft_seconds": 1, "inter_token_seconds": 20, "tpot_seconds": 4, "e2e_seconds": 1}
    counts |= {
        "decode_seconds": 4,
        "request_longest_generation_tokens": 1,
        "queue_seconds": 2,
        "prefill_seconds": 2,
        "request_prompt_tokens": 2,
        "request_generation_tokens": 4,
    }
    assert {name: value(metrics, f"{name}_count") for name in counts} == counts
    assert value(metrics, "queue_seconds_sum") == pytest.approx(0.02)


async def test_paths_and_methods_make_no_new_series(client: httpx.AsyncClient) -> None:
    for path in ("/a", "/b", "/v1/models/x", "/v1/models/y"):
        await client.get(path)
        await client.request("ODD", path)
    text = (await client.get("/metrics")).text
    found = re.findall(r'headrace_requests_total{endpoint="(\w+)",model="",outcome="\w+"} (\S+)', text)
    assert {endpoint for endpoint, _ in found} == {"other", "models", *ASKED_ANYWHERE}
    assert {endpoint for endpoint, count in found if float(count)} == {"other", "models"}


async def test_a_bucket_names_a_request_in_openmetrics() -> None:
    services = toy_services()
    async with client_of(services) as client:
        asked = {"model": MODEL, "prompt": "abc"}
        await client.post("/v1/completions", json=asked, headers={"x-request-id": "find-me"})
        await client.post("/v1/completions", json=asked, headers={"x-request-id": "x" * 128})
        answer = await client.get("/metrics", headers={"accept": OPEN_METRICS})
        plain = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics(answer.text)}
    for name in ("ttft", "e2e", "queue", "prefill", "decode"):
        exemplars = [sample.exemplar for sample in families[f"headrace_{name}_seconds"].samples if sample.exemplar]
        assert [exemplar.labels for exemplar in exemplars] == [{"request_id": "find-me"}]
    assert plain.headers["content-type"].startswith("text/plain")
    assert "find-me" not in plain.text


async def test_choices_are_counted_by_how_they_end() -> None:
    services = toy_services(FakeEngine(automatic=False), migration=False)
    engine, metrics = services.engine, services.metrics
    assert isinstance(engine, FakeEngine)
    connection = post(create_app(services), "/v1/completions", {"model": MODEL, "prompt": "a", "n": 2, "stream": True})
    await engine.until(lambda: len(engine.playing) == 2)
    engine.step()
    await connection.until(lambda seen: len(seen.sent) > 1)
    connection.leave()
    await connection.end()
    connection = post(create_app(services), "/v1/completions", {"model": MODEL, "prompt": "a"})
    await engine.until(lambda: bool(engine.playing))
    engine.die()
    await connection.end()
    engine.ready, engine.automatic = toy_ready(), True
    async with client_of(services) as client:
        await client.post("/v1/completions", json={"model": MODEL, "prompt": "a", "max_tokens": 3})
        engine.refusal = lambda submit: Rejected("queue_full", "full", 1.0)
        assert (await client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})).status_code == 429
    ends = ("abort", "error", "length", "stop")
    assert [value(metrics, "choices_total", finish_reason=end) for end in ends] == [2, 1, 1, 0]


async def test_what_vllms_dashboard_asks_for_is_there_under_its_names() -> None:
    services = toy_services()
    metrics = services.metrics
    metrics.engines[0].on_stats(
        msgspec.structs.replace(stats(running=3, waiting=5, blocks_used=5, blocks_total=20), waits_for="rows")
    )
    async with client_of(services) as client:
        body: dict[str, Any] = {"model": MODEL, "prompt": "abc", "n": 2}
        await client.post("/v1/completions", json=body)
        assert "vllm" not in (await client.get("/metrics")).text
        metrics.model = MODEL
        metrics.also_as_vllm()
        pages = [await client.get("/metrics", headers={"accept": accept}) for accept in ("", OPEN_METRICS)]
    for page, read in zip(pages, (text_string_to_metric_families, openmetrics), strict=True):
        samples = [sample for family in read(page.text) for sample in family.samples]
        theirs = {sample.name: sample for sample in samples if sample.labels.get("model_name") == MODEL}
        assert {f"vllm:{name}" for name in ASKED_OF_VLLM.split()} <= theirs.keys()
        assert theirs["vllm:num_requests_waiting"].value == 5
        assert theirs["vllm:kv_cache_usage_perc"].value == 0.25
        assert theirs["vllm:generation_tokens_total"].value == 12
        ended = {s.labels["finished_reason"]: s.value for s in samples if s.name == "vllm:request_success_total"}
        assert ended == {"stop": 2, "length": 0, "abort": 0, "error": 0}
        split = {s.labels["reason"]: s.value for s in samples if s.name == "vllm:num_requests_waiting_by_reason"}
        assert split == {"capacity": 5, "deferred": 0}


class NoAnswer(Exception):
    pass


class TwoCards(ModuleType):
    """NVML as it is called here, over two cards, of which the second does not tell its power."""

    NVMLError = NoAnswer
    NVML_TEMPERATURE_GPU = 0

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(used=10 + gpu, total=80)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        return SimpleNamespace(gpu=25 * (gpu + 1))

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if gpu == 1:
            raise NoAnswer
        return 350_000

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> int:
        return 40 + gpu


def test_gpus_are_read_at_each_scrape() -> None:
    registry = CollectorRegistry()
    GpuCollector(registry, TwoCards("nvml"))
    names = ("memory_used_bytes", "memory_total_bytes", "utilization_ratio", "power_watts", "temperature_celsius")
    found = [[registry.get_sample_value(f"headrace_gpu_{name}", {"gpu": gpu}) for gpu in "01"] for name in names]
    assert found == [[10, 11], [80, 80], [0.25, 0.5], [350, None], [40, 41]]


async def test_a_loop_that_is_held_up_is_late() -> None:
    told: list[float] = []
    looks = iter([5.0, 5.0, 6.0, 6.5, 7.0, 6.9])  # before and after each wait

    with pytest.raises(RuntimeError):  # the clock has run out
        await watch_lag(told.append, lambda: next(looks), every_s=0)
    assert told == [0.0, 0.5, 0.0]


def test_all_series_name_the_model_and_those_of_engines_the_engine() -> None:
    metrics = Metrics(2)
    metrics.model = "toy"
    for number, engine in enumerate(metrics.engines):
        engine.on_step(StepRecord("decode", 4, 4 + number, 0.01))
        engine.on_stats(stats(running=1 + number))
    families = list(text_string_to_metric_families(metrics.render()[0].decode()))
    assert all(sample.labels["model"] == "toy" for family in families for sample in family.samples)
    assert len({family.name for family in families}) == len(families)
    told = {
        family.name: family.samples for family in families if any("engine" in each.labels for each in family.samples)
    }
    assert told.keys() == {f"headrace_{name}" for name in OF_ENGINES.split()}
    assert all({sample.labels["engine"] for sample in samples} == {"0", "1"} for samples in told.values())
    running = {sample.labels["engine"]: sample.value for sample in told["headrace_requests_running"]}
    assert running == {"0": 1, "1": 2}


async def test_vllms_names_tell_engines_apart() -> None:
    metrics = Metrics(2)
    metrics.also_as_vllm()
    metrics.engines[0].on_stats(stats(blocks_used=5, blocks_total=20))
    metrics.engines[1].on_stats(stats(waiting=3, blocks_used=5, blocks_total=10))
    samples = [sample for family in metrics.collect() for sample in family.samples]
    for name, values in (("kv_cache_usage_perc", [0.25, 0.5]), ("num_requests_waiting", [0, 3])):
        found = {sample.labels["engine"]: sample.value for sample in samples if sample.name == f"vllm:{name}"}
        assert found == dict(zip("01", values, strict=True))


def test_tenants_beyond_the_bound_are_one() -> None:
    metrics = Metrics()
    for number in range(MAX_TENANTS + 5):
        metrics.tenant_ended(f"key{number}", 3, 2)
    metrics.tenant_ended("key0", 3, 2)
    assert value(metrics, "tenant_requests_total", key="key0") == 2
    assert value(metrics, "tenant_prompt_tokens_total", key="other") == 15
    assert value(metrics, "tenant_generation_tokens_total", key=f"key{MAX_TENANTS}") is None
