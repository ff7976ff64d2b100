"""Our series once more under vLLM's names, so that its dashboards and alerts work unchanged: --vllm-metric-names.

Values are ours and so are the bounds of histograms, which quantiles do not mind. Of vLLM's series, those that its
published dashboards ask for and that mean the same here, with its own labels model_name and engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.samples import Sample

RENAMED: Mapping[str, str] = {
    "headrace_requests_running": "vllm:num_requests_running",
    "headrace_generation_tokens": "vllm:generation_tokens",
    "headrace_prompt_tokens": "vllm:prompt_tokens",
    "headrace_prompt_tokens_cached": "vllm:prompt_tokens_cached",
    "headrace_preemptions": "vllm:num_preemptions",
    "headrace_prefix_queries": "vllm:prefix_cache_queries",
    "headrace_prefix_hits": "vllm:prefix_cache_hits",
    "headrace_choices": "vllm:request_success",
    "headrace_ttft_seconds": "vllm:time_to_first_token_seconds",
    "headrace_inter_token_seconds": "vllm:inter_token_latency_seconds",
    "headrace_tpot_seconds": "vllm:request_time_per_output_token_seconds",
    "headrace_e2e_seconds": "vllm:e2e_request_latency_seconds",
    "headrace_queue_seconds": "vllm:request_queue_time_seconds",
    "headrace_prefill_seconds": "vllm:request_prefill_time_seconds",
    "headrace_decode_seconds": "vllm:request_decode_time_seconds",
    "headrace_request_prompt_tokens": "vllm:request_prompt_tokens",
    "headrace_request_generation_tokens": "vllm:request_generation_tokens",
    "headrace_request_longest_generation_tokens": "vllm:request_max_num_generation_tokens",
    "headrace_step_tokens": "vllm:iteration_tokens_total",
}
LABELS: Mapping[str, str] = {"finish_reason": "finished_reason"}
CAPACITY = frozenset({"rows", "blocks"})  # the others are deferred, as vLLM calls it


class VllmNames:
    def __init__(self, collect: Callable[[], Iterable[Metric]], model: str) -> None:
        """collect: our families."""
        self._collect = collect
        self._labels = {"model_name": model, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        found = {family.name: family for family in self._collect()}
        for ours, theirs in RENAMED.items():
            yield self._renamed(found[ours], theirs)
        yield from self._waiting(found["headrace_requests_waiting"])
        used, total = (_by_engine(found[f"headrace_{name}"]) for name in ("kv_blocks_used", "kv_blocks"))
        shares = {engine: used[engine] / blocks if blocks else 0.0 for engine, blocks in total.items()}
        yield self._gauge("kv_cache_usage_perc", "KV cache in use; 1 is all of it.", shares)

    def _renamed(self, family: Metric, name: str) -> Metric:
        copy = Metric(name, family.documentation, family.type)
        for sample in family.samples:
            labels = {LABELS.get(label, label): value for label, value in sample.labels.items()}
            suffix = sample.name.removeprefix(family.name)
            copy.samples.append(
                Sample(name + suffix, {**self._labels, **labels}, sample.value, sample.timestamp, sample.exemplar)
            )
        return copy

    def _waiting(self, family: Metric) -> Iterator[Metric]:
        total, capacity = _by_engine(family), _by_engine(family, CAPACITY)
        yield self._gauge("num_requests_waiting", "Sequences that wait.", total)
        split = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Sequences that wait.", labels=(*self._labels, "reason")
        )
        for engine, num_waiting in total.items():
            reasons = {"capacity": capacity[engine], "deferred": num_waiting - capacity[engine]}
            for reason, value in reasons.items():
                split.add_metric([self._labels["model_name"], engine, reason], value)
        yield split

    def _gauge(self, name: str, text: str, values: Mapping[str, float]) -> Metric:
        """values: by engine."""
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=tuple(self._labels))
        for engine, value in values.items():
            family.add_metric([self._labels["model_name"], engine], value)
        return family


def _by_engine(family: Metric, reasons: Set[str] | None = None) -> dict[str, float]:
    """Sums; of these reasons only, where some are named."""
    sums: dict[str, float] = {}
    for sample in family.samples:
        counts = reasons is None or sample.labels["reason"] in reasons
        engine = sample.labels["engine"]
        sums[engine] = sums.get(engine, 0.0) + (sample.value if counts else 0.0)
    return sums
