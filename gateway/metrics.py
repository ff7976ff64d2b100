"""Every Prometheus series of the server, one function an event. Engines only count; all series live here.

Labels are bounded: endpoint, outcome, reason, cause and kind come from the sets below, never from a request. To a
scraper that speaks OpenMetrics, a bucket names a request that fell into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    exposition,
)
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics

from gateway import buckets
from gateway.engine_metrics import OTHER, EngineMetrics
from gateway.gpus import GpuCollector
from gateway.series import SeriesMaker
from gateway.siblings.sums import Series, merged, series_of
from gateway.vllm_names import VllmNames
from scheduler.protocol import FirstToken

ENDPOINTS = frozenset(
    {
        "admin",
        "background",
        "chat",
        "chat_page",
        "chat_web",
        "completions",
        "count_tokens",
        "dashboard",
        "detokenize",
        "embeddings",
        "generate",
        "health",
        "messages",
        "metrics",
        "models",
        "other",
        "profile",
        "render",
        "responses",
        "timeline",
        "tokenize",
    }
)
ASKED_ANYWHERE = ("chat", "completions")  # endpoints whose series are there before anybody asks
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
MIGRATIONS = frozenset({"moved", "poison", "failed", "left"})
FINISHES = frozenset({"stop", "length", "abort", "error"})
FIRST_ONLY = frozenset({"headrace_gateways", "headrace_gateway_restarts"})  # that the first gateway tells
MAX_TENANTS = 64  # keys with series of their own; the others are one


def bounded(value: str, allowed: Set[str]) -> str:
    return value if value in allowed else OTHER


@dataclass(frozen=True, slots=True)
class Figures:
    """Since the start: two of them tell of the time between."""

    ttft: tuple[int, ...]  # in the buckets of FIRST_TOKEN_S
    inter_token: tuple[int, ...]  # in those of PER_TOKEN_S
    prompt_tokens: int
    generation_tokens: int


class Metrics:
    """One per gateway process, on a registry of its own."""

    def __init__(self, num_engines: int = 1) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing reads
        self.registry = CollectorRegistry()
        self.engines = tuple(EngineMetrics() for _ in range(num_engines))
        self.num_streams = 0  # event streams being sent
        self.model = ""  # the label of all series; known when the model is
        self.elsewhere: dict[int, list[Series]] = {}  # of other gateways, whose sums with ours are told
        self._vllm_names: VllmNames | None = None
        self._tenants: set[str] = set()
        make = SeriesMaker(self.registry)
        self._create_request_series(make)
        self._create_gateway_series(make)
        self._create_latency_series(make)
        ProcessCollector(registry=self.registry)
        GpuCollector(self.registry)

    def also_as_vllm(self) -> None:
        """From now on, what vLLM's dashboards ask for is told under its names too."""
        self._vllm_names = VllmNames(self._families, self.model)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, in the format that an Accept header asks for."""
        if "application/openmetrics-text" not in accept:
            return exposition.generate_latest(self), exposition.CONTENT_TYPE_PLAIN_0_0_4
        # "allow-utf-8" changes none of our names. The default makes underscores of the colons of samples (0.26).
        page: bytes = openmetrics.generate_latest(self, openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return page, openmetrics.CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        for family in self._families():
            family.samples = [
                sample._replace(labels={"model": self.model, **sample.labels}) for sample in family.samples
            ]
            yield family
        if self._vllm_names is not None:
            yield from self._vllm_names.collect()

    def _families(self) -> Iterator[Metric]:
        own = self.registry.collect()
        yield from merged(own, self.elsewhere) if self.elsewhere else own
        yield from self._of_engines()

    def _of_engines(self) -> Iterator[Metric]:
        """A family has the samples of all."""
        for same in zip(*(engine.registry.collect() for engine in self.engines), strict=True):
            family = same[0]
            family.samples = [
                sample._replace(labels={"engine": str(number), **sample.labels})
                for number, each in enumerate(same)
                for sample in each.samples
            ]
            yield family

    def series(self) -> list[Series]:
        """For the first gateway, which tells of engines itself."""
        return series_of(self.registry.collect(), FIRST_ONLY)

    def _create_request_series(self, make: SeriesMaker) -> None:
        self._requests = make.counter("requests", "Requests ended, by how they ended.", ("endpoint", "outcome"))
        self._endpoints: set[str] = set()
        for endpoint in ASKED_ANYWHERE:
            self._know_endpoint(endpoint)
        self._rejections = make.counter("rejections", "Requests refused before any work.", ("reason",), REJECTIONS)
        self._rate_limited = make.counter(
            "rate_limited", "Requests refused for their client's own limits.", ("kind",), RATE_LIMITS
        )
        self._choices = make.counter("choices", "Choices ended, by why.", ("finish_reason",), FINISHES)
        self._tenant_requests = make.counter("tenant_requests", "Requests ended, by the name of their key.", ("key",))
        self._tenant_prompt_tokens = make.counter("tenant_prompt_tokens", "Prompt tokens of such requests.", ("key",))
        self._tenant_tokens = make.counter("tenant_generation_tokens", "Tokens generated for them.", ("key",))
        self._aborts = make.counter("aborts", "Sequences that the gateway ended early.", ("cause",), ABORTS)
        self._migrations = make.counter(
            "migrations", "Requests whose engine died, by what became of them.", ("outcome",), MIGRATIONS
        )
        self._streams_open = make.gauge("streams_open", "Event streams being sent.")
        self._prompt_tokens = make.tally("prompt_tokens", "Prompt tokens of requests that got a first token.")
        self._cached_tokens = make.tally("prompt_tokens_cached", "Of those, found in the prefix cache.")
        self._generation_tokens = make.tally("generation_tokens", "Tokens generated and used in an answer.")

    def _create_gateway_series(self, make: SeriesMaker) -> None:
        self._gateways = make.gauge("gateways", "Gateway processes that serve.")
        self._gateways.set(1)
        self._gateway_restarts = make.counter("gateway_restarts", "Times that one was started again.")

    def _create_latency_series(self, make: SeriesMaker) -> None:
        self._ttft = make.histogram(
            "ttft_seconds", "From the request's arrival to its first token.", buckets.FIRST_TOKEN_S
        )
        self._inter_token = make.histogram(
            "inter_token_seconds", "Between two tokens of one choice.", buckets.PER_TOKEN_S
        )
        self._tpot = make.histogram(
            "tpot_seconds", "Mean time per token after the first, one value a choice.", buckets.PER_TOKEN_S
        )
        self._e2e = make.histogram("e2e_seconds", "From arrival to the last byte.", buckets.REQUEST_S)
        self._queue = make.histogram("queue_seconds", "Waiting in the engine's queue.", buckets.REQUEST_S)
        self._prefill = make.histogram("prefill_seconds", "From admission to the first token.", buckets.REQUEST_S)
        self._predicted = make.histogram(
            "ttft_met_to_predicted_ratio",
            "The engine's time to the first token, by what it predicted at submission.",
            buckets.RATIO,
        )
        self._decode = make.histogram("decode_seconds", "From a choice's first token to its last.", buckets.REQUEST_S)
        self._migration = make.histogram(
            "migration_seconds", "From an engine's death to the next token of a request that it had.", buckets.REQUEST_S
        )
        self._loop_lag = make.histogram(
            "event_loop_lag_seconds", "How late the gateway's event loop looks at a timer.", buckets.LOOP_LAG_S
        )
        self._prompt_length = make.histogram(
            "request_prompt_tokens", "Prompt tokens of a prompt.", buckets.TOKENS_OF_REQUEST
        )
        self._answer_length = make.histogram(
            "request_generation_tokens", "Tokens of a choice.", buckets.TOKENS_OF_REQUEST
        )
        self._longest = make.histogram(
            "request_longest_generation_tokens", "Tokens of a request's longest choice.", buckets.TOKENS_OF_REQUEST
        )

    # requests

    def request_ended(self, endpoint: str, outcome: str, seconds: float, request_id: str) -> None:
        name = bounded(endpoint, ENDPOINTS)
        if name not in self._endpoints:
            self._know_endpoint(name)
        self._requests.labels(name, bounded(outcome, OUTCOMES)).inc()
        if outcome in ("stop", "length"):
            self._e2e.observe(seconds, request_id)

    def _know_endpoint(self, name: str) -> None:
        """All its outcomes are there from now on: its first error is an increase, and series do not grow in number."""
        self._endpoints.add(name)
        for outcome in OUTCOMES:
            self._requests.labels(name, outcome)

    def tenant_ended(self, key: str, prompt_tokens: int, generated_tokens: int) -> None:
        if len(self._tenants) < MAX_TENANTS:
            self._tenants.add(key)
        name = bounded(key, self._tenants)
        self._tenant_requests.labels(name).inc()
        self._tenant_prompt_tokens.labels(name).inc(prompt_tokens)
        self._tenant_tokens.labels(name).inc(generated_tokens)

    def rejected(self, reason: str) -> None:
        self._rejections.labels(bounded(reason, REJECTIONS)).inc()

    def rate_limited(self, kind: str) -> None:
        self._rate_limited.labels(bounded(kind, RATE_LIMITS)).inc()

    def aborted(self, cause: str, num_seqs: int) -> None:
        self._aborts.labels(bounded(cause, ABORTS)).inc(num_seqs)

    def migrated(self, outcome: str, seconds: float | None = None) -> None:
        """seconds: of one that goes on."""
        self._migrations.labels(bounded(outcome, MIGRATIONS)).inc()
        if seconds is not None:
            self._migration.observe(seconds)

    def stream_opened(self) -> None:
        self.num_streams += 1
        self._streams_open.inc()

    def stream_closed(self) -> None:
        self.num_streams -= 1
        self._streams_open.dec()

    def prompt_computed(self, prompt_tokens: int, first: FirstToken, request_id: str) -> None:
        """Once a prompt, with the first token of its leader."""
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(first.cached_tokens)
        self._prompt_length.observe(prompt_tokens)
        self._queue.observe(first.queued_s, request_id)
        self._prefill.observe(first.prefill_s, request_id)
        if first.delays.predicted_s:
            met_s = first.queued_s + first.prefill_s - first.delays.grammar_s
            self._predicted.observe(met_s / first.delays.predicted_s, request_id)

    def first_token(self, seconds: float, request_id: str) -> None:
        self._ttft.observe(seconds, request_id)

    def tokens(self, num_used: int) -> None:
        self._generation_tokens.inc(num_used)

    def inter_token(self, seconds: float) -> None:
        self._inter_token.observe(seconds)

    def choice_finished(self, reason: str) -> None:
        self._choices.labels(bounded(reason, FINISHES)).inc()

    def choice_generated(self, num_tokens: int, seconds_after_first: float, request_id: str) -> None:
        """A choice that came to its own end."""
        self._answer_length.observe(num_tokens)
        self._decode.observe(seconds_after_first, request_id)
        if num_tokens > 1:
            self._tpot.observe(seconds_after_first / (num_tokens - 1))

    def request_generated(self, longest: int) -> None:
        self._longest.observe(longest)

    def figures(self) -> Figures:
        tokens = self._prompt_tokens.value, self._generation_tokens.value
        return Figures(self._ttft.counts, self._inter_token.counts, *tokens)

    # the gateways themselves

    def gateways(self, number: int) -> None:
        self._gateways.set(number)

    def gateway_restarted(self) -> None:
        self._gateway_restarts.inc()

    def loop_lag(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)
