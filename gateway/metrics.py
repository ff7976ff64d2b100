"""Every Prometheus series of the server, one function an event. Engines only count; all series live here.

Labels are bounded: endpoint, outcome, reason, cause and kind come from the sets below, never from a request.
"""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from gateway import buckets
from gateway.tallies import Tally, TallyHistogram
from scheduler.protocol import EngineStats, FirstToken, StepRecord

ENDPOINTS = frozenset(
    {
        "background",
        "chat",
        "completions",
        "count_tokens",
        "detokenize",
        "embeddings",
        "health",
        "messages",
        "metrics",
        "models",
        "other",
        "responses",
        "tokenize",
    }
)
OUTCOMES = frozenset(
    {
        "cancelled",
        "client_closed",
        "error",
        "expired",
        "invalid",
        "length",
        "ok",
        "rejected",
        "slow_reader",
        "stop",
        "unavailable",
    }
)
REJECTIONS = frozenset({"queue_full", "too_long", "never_fits", "draining", "engine_unavailable", "unauthorized"})
RATE_LIMITS = frozenset({"requests", "tokens", "concurrency"})
ABORTS = frozenset({"client_closed", "stop_string", "slow_reader", "draining", "stalled", "failed", "cancelled"})
STEP_KINDS = frozenset({"prefill", "decode", "mixed"})
OTHER = "other"
NO_STATS = EngineStats(*([0] * len(EngineStats.__struct_fields__)))


def bounded(value: str, allowed: frozenset[str]) -> str:
    return value if value in allowed else OTHER


class Metrics:
    """One per gateway process, on a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing reads
        self.registry = CollectorRegistry()
        self.content_type = CONTENT_TYPE_LATEST
        self._last = NO_STATS
        self._create_request_series()
        self._create_latency_series()
        self._create_step_series()
        self._create_engine_series()

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"headrace_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"headrace_{name}", text, registry=self.registry)

    def _histogram(
        self, name: str, text: str, bounds: tuple[float, ...] | tuple[int, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(f"headrace_{name}", text, labels, buckets=bounds, registry=self.registry)

    def _create_request_series(self) -> None:
        self._requests = self._counter("requests", "Requests ended, by how they ended.", ("endpoint", "outcome"))
        self._rejections = self._counter("rejections", "Requests refused before any work.", ("reason",))
        self._rate_limited = self._counter("rate_limited", "Requests refused for their client's own limits.", ("kind",))
        self._aborts = self._counter("aborts", "Sequences that the gateway ended early.", ("cause",))
        self._streams_open = self._gauge("streams_open", "Event streams being sent.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that got a first token.")
        self._cached_tokens = self._counter("prompt_tokens_cached", "Of those, found in the prefix cache.")
        self._generation_tokens = Tally(
            "headrace_generation_tokens", "Tokens generated and used in an answer.", self.registry
        )

    def _create_latency_series(self) -> None:
        self._ttft = self._histogram(
            "ttft_seconds", "From the request's arrival to its first token.", buckets.FIRST_TOKEN_S
        )
        self._inter_token = TallyHistogram(
            "headrace_inter_token_seconds", "Between two tokens of one choice.", buckets.PER_TOKEN_S, self.registry
        )
        self._tpot = self._histogram(
            "tpot_seconds", "Mean time per token after the first, one value a choice.", buckets.PER_TOKEN_S
        )
        self._e2e = self._histogram("e2e_seconds", "From arrival to the last byte.", buckets.REQUEST_S)
        self._queue = self._histogram("queue_seconds", "Waiting in the engine's queue.", buckets.REQUEST_S)
        self._prefill = self._histogram("prefill_seconds", "From admission to the first token.", buckets.REQUEST_S)
        self._prompt_length = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a prompt.", buckets.TOKENS_OF_REQUEST
        )
        self._answer_length = self._histogram(
            "request_generation_tokens", "Tokens of a choice.", buckets.TOKENS_OF_REQUEST
        )

    def _create_step_series(self) -> None:
        self._step_seconds = self._histogram(
            "step_seconds", "Duration of an engine step.", buckets.STEP_S, labels=("kind",)
        )
        self._step_tokens = self._histogram("step_tokens", "Tokens computed in a step.", buckets.TOKENS_OF_STEP)
        self._batch_size = self._histogram("batch_size", "Sequences in a step.", buckets.SEQUENCES_OF_STEP)

    def _create_engine_series(self) -> None:
        self._engine_up = self._gauge("engine_up", "1 while the engine takes work.")
        self._engine_restarts = self._counter("engine_restarts", "Times that the engine was started again.")
        self._running = self._gauge("requests_running", "Sequences that hold a slot of the engine.")
        self._waiting = self._gauge("requests_waiting", "Sequences in the engine's queue.")
        self._waiting_tokens = self._gauge("waiting_tokens", "Prompt tokens in the engine's queue.")
        self._blocks_used = self._gauge("kv_blocks_used", "KV blocks held by sequences.")
        self._blocks_cached = self._gauge("kv_blocks_cached", "Free KV blocks that a prefix still finds.")
        self._blocks_total = self._gauge("kv_blocks_total", "KV blocks of the engine.")
        self._since_start = {
            "steps": self._counter("steps", "Engine steps."),
            "failed_steps": self._counter("failed_steps", "Engine steps that failed."),
            "preemptions": self._counter("preemptions", "Sequences that lost their blocks to others."),
            "recomputed_tokens": self._counter("recomputed_tokens", "Tokens computed again after a preemption."),
            "prefix_queries": self._counter("prefix_queries", "Prompt tokens looked up in the prefix cache."),
            "prefix_hits": self._counter("prefix_hits", "Prompt tokens found in the prefix cache."),
        }

    # the engine

    def on_step(self, record: StepRecord) -> None:
        self._step_seconds.labels(bounded(record.kind, STEP_KINDS)).observe(record.seconds)
        self._step_tokens.observe(record.num_tokens)
        self._batch_size.observe(record.num_seqs)

    def on_stats(self, stats: EngineStats) -> None:
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._waiting_tokens.set(stats.waiting_tokens)
        self._blocks_used.set(stats.blocks_used)
        self._blocks_cached.set(stats.blocks_cached)
        self._blocks_total.set(stats.blocks_total)
        # A counter that went back belongs to a new engine, whether or not its restart was announced.
        before = self._last if stats.steps >= self._last.steps else NO_STATS
        self._last = stats
        for name, counter in self._since_start.items():
            counter.inc(max(0, getattr(stats, name) - getattr(before, name)))

    def engine_up(self, up: bool) -> None:
        self._engine_up.set(1 if up else 0)
        if not up:
            for gauge in (self._running, self._waiting, self._waiting_tokens, self._blocks_used, self._blocks_cached):
                gauge.set(0)

    def engine_restarted(self) -> None:
        self._engine_restarts.inc()
        self._last = NO_STATS

    # requests

    def request_ended(self, endpoint: str, outcome: str, seconds: float) -> None:
        self._requests.labels(bounded(endpoint, ENDPOINTS), bounded(outcome, OUTCOMES)).inc()
        if outcome in ("stop", "length"):
            self._e2e.observe(seconds)

    def rejected(self, reason: str) -> None:
        self._rejections.labels(bounded(reason, REJECTIONS)).inc()

    def rate_limited(self, kind: str) -> None:
        self._rate_limited.labels(bounded(kind, RATE_LIMITS)).inc()

    def aborted(self, cause: str, num_seqs: int) -> None:
        self._aborts.labels(bounded(cause, ABORTS)).inc(num_seqs)

    def stream_opened(self) -> None:
        self._streams_open.inc()

    def stream_closed(self) -> None:
        self._streams_open.dec()

    def prompt_computed(self, prompt_tokens: int, first: FirstToken) -> None:
        """Once a prompt, with the first token of its leader."""
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(first.cached_tokens)
        self._prompt_length.observe(prompt_tokens)
        self._queue.observe(first.queued_s)
        self._prefill.observe(first.prefill_s)

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def tokens(self, num_used: int) -> None:
        self._generation_tokens.inc(num_used)

    def inter_token(self, seconds: float) -> None:
        self._inter_token.observe(seconds)

    def choice_ended(self, num_tokens: int, seconds_after_first: float) -> None:
        self._answer_length.observe(num_tokens)
        if num_tokens > 1:
            self._tpot.observe(seconds_after_first / (num_tokens - 1))
