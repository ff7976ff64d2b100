"""The dashboard's panels: what each asks, how it is read. Only names that gateway/metrics.py knows; a test sees to it.

PICK narrows every query to what the dashboard's variables choose; RATE is Grafana's own idea of a good window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

PICK = 'model=~"$model",instance=~"$instance"'
ENGINE = PICK + ',engine=~"$engine"'
RATE = "$__rate_interval"
TTFT_TARGET_S = 1.0  # that 99 of 100 requests shall meet; a bound of buckets.FIRST_TOKEN_S
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""
    heatmap: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "timeseries"  # or stat, heatmap
    about: str = ""
    width: int = 8  # of 24
    stacked: bool = False
    thresholds: Sequence[tuple[float | None, str]] = field(default_factory=tuple)  # from where on which colour


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]


def rate(name: str, by: str = "", pick: str = PICK) -> str:
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate(headrace_{name}{{{pick}}}[{RATE}]))"


def total(name: str, by: str = "", pick: str = PICK) -> str:
    group = f" by ({by})" if by else ""
    return f"sum{group} (headrace_{name}{{{pick}}})"


def quantiles(name: str, pick: str = PICK) -> list[Query]:
    """Of a histogram, with its mean."""
    buckets = rate(f"{name}_bucket", "le", pick)
    found = [Query(f"histogram_quantile({q}, {buckets})", f"p{q * 100:g}") for q in QUANTILES]
    return [*found, Query(f"{rate(f'{name}_sum', pick=pick)} / {rate(f'{name}_count', pick=pick)}", "mean")]


def heat(name: str, pick: str = PICK) -> list[Query]:
    return [Query(f"sum by (le) (increase(headrace_{name}_bucket{{{pick}}}[{RATE}]))", "{{le}}", heatmap=True)]


FAILED = 'outcome=~"error|unavailable|expired"'
IN_TIME = f'le="{TTFT_TARGET_S}"'
SHARE_FAILED = f"({rate('requests_total', pick=f'{PICK},{FAILED}')} or vector(0)) / {rate('requests_total')}"
SHARE_IN_TIME = f"{rate('ttft_seconds_bucket', pick=f'{PICK},{IN_TIME}')} / {rate('ttft_seconds_count')}"
BAD_WHEN_ZERO = ((None, "red"), (1, "green"))
BAD_WHEN_HIGH = ((None, "green"), (0.8, "yellow"), (0.95, "red"))
USED = f"{total('kv_blocks_used', pick=ENGINE)} / {total('kv_blocks', pick=ENGINE)}"
WAITING = total("requests_waiting", pick=ENGINE)

ROWS: Sequence[Row] = (
    Row(
        "Overview: is it healthy, is it full",
        (
            Panel(
                "Engines up", [Query(total("engine_up", pick=ENGINE))], kind="stat", width=4, thresholds=BAD_WHEN_ZERO
            ),
            Panel("Running", [Query(total("requests_running", pick=ENGINE))], kind="stat", width=4),
            Panel("Waiting", [Query(WAITING)], kind="stat", width=4),
            Panel("KV cache in use", [Query(USED)], "percentunit", kind="stat", width=4, thresholds=BAD_WHEN_HIGH),
            Panel("Tokens a second", [Query(rate("generation_tokens_total"))], kind="stat", width=4),
            Panel(
                "Failed requests",
                [Query(SHARE_FAILED)],
                "percentunit",
                kind="stat",
                width=4,
                about="Those that ended with an error of ours: error, unavailable, expired.",
                thresholds=((None, "green"), (0.01, "yellow"), (0.05, "red")),
            ),
            Panel(
                "Requests by outcome", [Query(rate("requests_total", "outcome"), "{{outcome}}")], "reqps", stacked=True
            ),
            Panel(
                "Requests by endpoint",
                [Query(rate("requests_total", "endpoint"), "{{endpoint}}")],
                "reqps",
                stacked=True,
            ),
            Panel(
                "Refused",
                [
                    Query(rate("rejections_total", "reason"), "{{reason}}"),
                    Query(rate("rate_limited_total", "kind"), "own limit: {{kind}}"),
                ],
                "reqps",
                stacked=True,
                about="Before any work, by why. Below: what clients refused of themselves by their own limits.",
            ),
        ),
    ),
    Row(
        "Latency: who is slow, and where the time goes",
        (
            Panel("Time to first token", quantiles("ttft_seconds"), "s"),
            Panel("Between two tokens", quantiles("inter_token_seconds"), "s"),
            Panel("Whole requests", quantiles("e2e_seconds"), "s"),
            Panel("Time in the queue", quantiles("queue_seconds"), "s"),
            Panel("Prefill", quantiles("prefill_seconds"), "s"),
            Panel("Decode", quantiles("decode_seconds"), "s"),
            Panel("Time to first token, all of them", heat("ttft_seconds"), "s", kind="heatmap"),
            Panel(
                "First token: met by predicted",
                quantiles("ttft_met_to_predicted_ratio"),
                about="The engine's time to it by what its queue promised at submission. 1: as predicted; less: prefix "
                "hits; more: no row or no block was free, or others came first.",
            ),
            Panel("Per token after the first", quantiles("tpot_seconds"), "s", about="One value a choice."),
            Panel(
                "Event loop's lag",
                quantiles("event_loop_lag_seconds"),
                "s",
                about="How late the gateway looks at a timer. What holds it up holds up every stream.",
            ),
        ),
    ),
    Row(
        "Throughput",
        (
            Panel(
                "Tokens a second",
                [
                    Query(rate("generation_tokens_total"), "generated"),
                    Query(rate("prompt_tokens_total"), "of prompts"),
                    Query(rate("prompt_tokens_cached_total"), "of which cached"),
                ],
            ),
            Panel(
                "Choices by how they ended",
                [Query(rate("choices_total", "finish_reason"), "{{finish_reason}}")],
                "cps",
                stacked=True,
            ),
            Panel("Streams open", [Query(total("streams_open"), "streams")]),
            Panel("Length of prompts", heat("request_prompt_tokens"), kind="heatmap"),
            Panel("Length of choices", heat("request_generation_tokens"), kind="heatmap"),
            Panel("Longest choice of a request", quantiles("request_longest_generation_tokens")),
        ),
    ),
    Row(
        "Scheduler",
        (
            Panel(
                "Running and waiting",
                [Query(total("requests_running", pick=ENGINE), "running"), Query(WAITING, "waiting")],
            ),
            Panel(
                "Waiting, by what for",
                [Query(total("requests_waiting", "reason", ENGINE), "{{reason}}")],
                stacked=True,
                about="step: their turn; rows: a row of the batch (--max-seqs); blocks: KV cache; choice: the first of "
                "their request's choices; grammar: its compilation.",
            ),
            Panel("Prompt tokens in the queue", [Query(total("waiting_tokens", pick=ENGINE), "tokens")]),
            Panel("Sequences in a step", quantiles("batch_size", ENGINE)),
            Panel("Tokens in a step", quantiles("step_tokens", ENGINE)),
            Panel(
                "Steps a second", [Query(rate("step_seconds_count", "kind", ENGINE), "{{kind}}")], "cps", stacked=True
            ),
            Panel(
                "A step's time",
                [
                    Query(
                        f"{rate('step_seconds_sum', 'kind', ENGINE)} / {rate('step_seconds_count', 'kind', ENGINE)}",
                        "{{kind}}",
                    )
                ],
                "s",
            ),
            Panel(
                "Share of time by step",
                [Query(rate("step_seconds_sum", "kind", ENGINE), "{{kind}}")],
                "percentunit",
                stacked=True,
            ),
            Panel("Ended early, by cause", [Query(rate("aborts_total", "cause"), "{{cause}}")], "cps", stacked=True),
        ),
    ),
    Row(
        "KV cache",
        (
            Panel(
                "Blocks",
                [
                    Query(total("kv_blocks_used", pick=ENGINE), "held by sequences"),
                    Query(total("kv_blocks_cached", pick=ENGINE), "free, found by prefix"),
                    Query(
                        f"{total('kv_blocks', pick=ENGINE)} - {total('kv_blocks_used', pick=ENGINE)} - "
                        f"{total('kv_blocks_cached', pick=ENGINE)}",
                        "free",
                    ),
                ],
                stacked=True,
            ),
            Panel(
                "Prefix hits",
                [
                    Query(
                        f"{rate('prefix_hits_total', pick=ENGINE)} / {rate('prefix_queries_total', pick=ENGINE)}",
                        "of prompt tokens",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Preemptions",
                [
                    Query(rate("preemptions_total", pick=ENGINE), "sequences a second"),
                    Query(rate("recomputed_tokens_total", pick=ENGINE), "tokens computed again a second"),
                ],
                about="Sequences that lost their blocks to others: the cache is too small for what runs.",
            ),
        ),
    ),
    Row(
        "Engines",
        (
            Panel(
                "Up, and drained by an operator",
                [
                    Query(total("engine_up", "instance, engine", ENGINE), "{{instance}} {{engine}} up"),
                    Query(total("engine_draining", "instance, engine", ENGINE), "{{instance}} {{engine}} drained"),
                ],
            ),
            Panel(
                "Restarts and failed steps",
                [
                    Query(f"sum (increase(headrace_engine_restarts_total{{{ENGINE}}}[{RATE}]))", "restarts"),
                    Query(f"sum (increase(headrace_failed_steps_total{{{ENGINE}}}[{RATE}]))", "failed steps"),
                ],
            ),
            Panel(
                "Requests whose engine died",
                [Query(f"sum by (outcome) (increase(headrace_migrations_total{{{PICK}}}[{RATE}]))", "{{outcome}}")],
                about="moved: another engine went on with it. docs/migration.md has the others.",
            ),
            Panel("Pause of those that go on", quantiles("migration_seconds"), "s"),
            Panel(
                "Steps a second",
                [Query(rate("steps_total", "instance, engine", ENGINE), "{{instance}} {{engine}}")],
                "cps",
            ),
            Panel(
                "Gateways",
                [
                    Query(f"headrace_gateways{{{PICK}}}", "{{instance}}"),
                    Query(f"increase(headrace_gateway_restarts_total{{{PICK}}}[{RATE}])", "{{instance}}: restarts"),
                ],
                about="Processes that serve HTTP, of those that --gateways asked for.",
            ),
            Panel(
                "Gateway: processor",
                [Query(f"rate(process_cpu_seconds_total{{{PICK}}}[{RATE}])", "{{instance}} {{gateway}}")],
                "percentunit",
                about="Of one core. Near 1, --gateways should be more.",
            ),
            Panel(
                "Gateway: memory",
                [Query(f"process_resident_memory_bytes{{{PICK}}}", "{{instance}} {{gateway}}")],
                "bytes",
            ),
            Panel("Gateway: open files", [Query(f"process_open_fds{{{PICK}}}", "{{instance}} {{gateway}}")]),
            Panel(
                "GPU memory",
                [
                    Query(f"headrace_gpu_memory_used_bytes{{{PICK}}}", "{{instance}} {{gpu}}"),
                    Query(f"headrace_gpu_memory_total_bytes{{{PICK}}}", "{{instance}} {{gpu}}: all"),
                ],
                "bytes",
                about="Where there are GPUs, and nvidia-ml-py is installed.",
            ),
            Panel(
                "GPU busy", [Query(f"headrace_gpu_utilization_ratio{{{PICK}}}", "{{instance}} {{gpu}}")], "percentunit"
            ),
            Panel("GPU power", [Query(f"headrace_gpu_power_watts{{{PICK}}}", "{{instance}} {{gpu}}")], "watt"),
            Panel(
                "GPU temperature",
                [Query(f"headrace_gpu_temperature_celsius{{{PICK}}}", "{{instance}} {{gpu}}")],
                "celsius",
            ),
        ),
    ),
    Row(
        "Tenants: by the name of the key",
        (
            Panel("Requests", [Query(rate("tenant_requests_total", "key"), "{{key}}")], "reqps", stacked=True),
            Panel("Tokens of prompts", [Query(rate("tenant_prompt_tokens_total", "key"), "{{key}}")], stacked=True),
            Panel("Tokens generated", [Query(rate("tenant_generation_tokens_total", "key"), "{{key}}")], stacked=True),
        ),
    ),
    Row(
        f"SLO: 99 % of first tokens within {TTFT_TARGET_S:g} s, 99.5 % of requests without an error of ours",
        (
            Panel(
                "First tokens in time",
                [Query(SHARE_IN_TIME, "in time"), Query("vector(0.99)", "objective")],
                "percentunit",
            ),
            Panel(
                "Requests without an error of ours",
                [Query(f"1 - {SHARE_FAILED}", "well"), Query("vector(0.995)", "objective")],
                "percentunit",
            ),
            Panel(
                "Error budget left, of the time shown",
                [
                    Query(
                        f"1 - (1 - sum(increase(headrace_ttft_seconds_bucket{{{PICK},{IN_TIME}}}[$__range])) / "
                        f"sum(increase(headrace_ttft_seconds_count{{{PICK}}}[$__range]))) / 0.01",
                        "first tokens",
                    ),
                    Query(
                        f"1 - (sum(increase(headrace_requests_total{{{PICK},{FAILED}}}[$__range])) or vector(0)) / "
                        f"sum(increase(headrace_requests_total{{{PICK}}}[$__range])) / 0.005",
                        "errors",
                    ),
                ],
                "percentunit",
                kind="stat",
                thresholds=((None, "red"), (0.25, "yellow"), (0.5, "green")),
            ),
        ),
    ),
)
