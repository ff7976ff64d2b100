"""The series of one engine."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics

from gateway import buckets
from gateway.series import SeriesMaker
from scheduler.protocol import EngineStats, StepRecord

STEP_KINDS = ("prefill", "decode", "mixed")
OTHER = "other"
WAIT_REASONS = ("step", "rows", "blocks", "choice", "grammar", "fairness")
NO_STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class EngineMetrics:
    """An EngineObserver, on a registry of its own: its page says which engine it is."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing reads
        self.registry = CollectorRegistry()
        self._last = NO_STATS
        make = SeriesMaker(self.registry)
        self._create_step_series(make)
        self._create_gauges(make)
        self._engine_restarts = make.counter("engine_restarts", "Times that the engine was started again.")
        self._since_start = {
            "steps": make.counter("steps", "Engine steps."),
            "failed_steps": make.counter("failed_steps", "Engine steps that failed."),
            "preemptions": make.counter("preemptions", "Sequences that lost their blocks to others."),
            "recomputed_tokens": make.counter("recomputed_tokens", "Tokens computed again after a preemption."),
            "prefix_queries": make.counter("prefix_queries", "Prompt tokens looked up in the prefix cache."),
            "prefix_hits": make.counter("prefix_hits", "Prompt tokens found in the prefix cache."),
        }

    def _create_step_series(self, make: SeriesMaker) -> None:
        self._step_seconds = Histogram(
            "headrace_step_seconds",
            "Duration of an engine step.",
            ("kind",),
            buckets=buckets.STEP_S,
            registry=self.registry,
        )
        for kind in STEP_KINDS:
            self._step_seconds.labels(kind)
        self._step_tokens = make.histogram("step_tokens", "Tokens computed in a step.", buckets.TOKENS_OF_STEP)
        self._batch_size = make.histogram("batch_size", "Sequences in a step.", buckets.SEQUENCES_OF_STEP)

    def _create_gauges(self, make: SeriesMaker) -> None:
        self._up = make.gauge("engine_up", "1 while there is an engine that could take work.")
        self._draining = make.gauge("engine_draining", "1 while it is given none, on an operator's word.")
        self._running = make.gauge("requests_running", "Sequences that hold a slot of the engine.")
        self._waiting = make.gauge(
            "requests_waiting",
            "Sequences that wait, by what for: their turn in a step, a row of the batch, KV blocks, the first of "
            "their request's choices, their grammar.",
            ("reason",),
        )
        self._set_waiting(NO_STATS)
        self._waiting_tokens = make.gauge("waiting_tokens", "Prompt tokens in the engine's queue.")
        self._blocks_used = make.gauge("kv_blocks_used", "KV blocks held by sequences.")
        self._blocks_cached = make.gauge("kv_blocks_cached", "Free KV blocks that a prefix still finds.")
        self._blocks_total = make.gauge("kv_blocks", "KV blocks of the engine.")

    def on_step(self, step: StepRecord) -> None:
        self._step_seconds.labels(step.kind if step.kind in STEP_KINDS else OTHER).observe(step.seconds)
        self._step_tokens.observe(step.num_tokens)
        self._batch_size.observe(step.num_seqs)

    def on_stats(self, stats: EngineStats) -> None:
        self._running.set(stats.running)
        self._set_waiting(stats)
        self._waiting_tokens.set(stats.waiting_tokens)
        self._blocks_used.set(stats.blocks_used)
        self._blocks_cached.set(stats.blocks_cached)
        self._blocks_total.set(stats.blocks_total)
        # A counter that went back belongs to a new engine, whether or not its restart was announced.
        before = self._last if stats.steps >= self._last.steps else NO_STATS
        self._last = stats
        for name, counter in self._since_start.items():
            counter.inc(max(0, getattr(stats, name) - getattr(before, name)))

    def _set_waiting(self, stats: EngineStats) -> None:
        found = dict.fromkeys(WAIT_REASONS, 0)
        found[stats.waits_for] = stats.waiting - stats.parked - stats.overtaken
        found["choice"], found["grammar"], found["fairness"] = stats.parked, stats.compiling, stats.overtaken
        for reason in WAIT_REASONS:
            self._waiting.labels(reason).set(found[reason])

    def engine_up(self, up: bool) -> None:
        self._up.set(1 if up else 0)
        if not up:
            self._set_waiting(NO_STATS)
            for gauge in (self._running, self._waiting_tokens, self._blocks_used, self._blocks_cached):
                gauge.set(0)

    def engine_draining(self, draining: bool) -> None:
        self._draining.set(1 if draining else 0)

    def engine_restarted(self) -> None:
        self._engine_restarts.inc()
        self._last = NO_STATS
