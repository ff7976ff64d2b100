"""From the options of a program to a running engine and a session with it. Light to import: what the session needs is
imported while the engine starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from gateway.config import Config, ConfigError, config_of
from gateway.engines.replicas import Replicas
from gateway.metrics import Metrics
from gateway.model.fetch import Report, silent
from gateway.model.resolve import ResolvedModel, resolve_model
from gateway.serve import engine_setups, model_request
from gateway.startup import Display
from scheduler.protocol import Progress, Ready

if TYPE_CHECKING:
    from gateway.offline.session import Session

OptionValue = str | int | float | bool

OF_SERVERS = frozenset(
    {
        *("host", "port", "cors_origin", "max_body", "drain_timeout", "api_key", "api_key_file", "metrics_auth"),
        *(
            "limit_rpm",
            "limit_tpm",
            "limit_concurrency",
            "responses_store",
            "responses_store_memory",
            "timelines",
            "fairness",
        ),
        *("otlp_traces_endpoint", "max_background", "debug_profile", "vllm_metric_names", "log_level", "log_format"),
        *("ray", "ray_name", "attach", "engine_tls_cert", "engine_tls_key", "engine_tls_ca"),
        *(
            "strict",
            "gateways",
            "end_with_stdin",
            "admin",
            "web_temperature",
            "web_top_k",
            "web_max_tokens",
            "web_page",
        ),
        *("generate_temperature", "generate_top_k", "generate_top_p", "generate_stop_on_eos", "generate_do_sample"),
    }
)
PATIENT = {"max_wait": 0}  # a program's last prompt waits as long as all before it take


@dataclass(frozen=True, slots=True)
class Plan:
    config: Config
    resolved: ResolvedModel
    environ: Mapping[str, str]


def settle(model: str, options: Mapping[str, OptionValue]) -> Config:
    """Raises ConfigError for what is no option, or one of servers only."""
    for name in options:
        if name in OF_SERVERS:
            raise ConfigError(f"{name}: there is no server here that it could be of")
    return config_of({**PATIENT, "model": model, **options})


def find(config: Config, environ: Mapping[str, str], report: Report) -> Plan:
    """Fetches what is not on this disk yet. Blocks. Raises ModelError."""
    return Plan(config, resolve_model(model_request(config), environ, report), environ)


async def open_session(plan: Plan, report: Report) -> Session:
    """Raises ModelError or EngineFailed, and then no process is left."""
    setups = engine_setups(plan.config, plan.resolved, plan.environ)
    metrics = Metrics(len(setups))
    replicas = Replicas(setups, metrics.engines, plan.config.prefix_caching)

    def told(progress: Progress) -> None:
        report(progress.phase, progress.done, progress.total)

    starting = asyncio.create_task(replicas.start(told))
    threads = ThreadPoolExecutor(1, thread_name_prefix="load")
    try:
        opened = await asyncio.get_running_loop().run_in_executor(threads, _load, plan)
        return opened(metrics, replicas, await starting)
    except BaseException:
        starting.cancel()
        with suppress(BaseException):  # the first failure counts
            await starting
        await replicas.close()
        raise
    finally:
        threads.shutdown(wait=False)


def _load(plan: Plan) -> Callable[[Metrics, Replicas, Sequence[Ready]], Session]:
    """In a thread: most of a second, in which the engine imports torch."""
    from gateway.assembly import known, load
    from gateway.offline.session import session_of

    model = load(plan.resolved, plan.config)

    def opened(metrics: Metrics, replicas: Replicas, ready: Sequence[Ready]) -> Session:
        return session_of(plan.config, known(model, plan.resolved, ready[0]), metrics, replicas)

    return opened


def display(progress: bool | None) -> Display | None:
    """Bars of the start. progress: None, for where somebody sees them."""
    console = Console(stderr=True)
    return Display(console) if progress or (progress is None and console.is_terminal) else None


def report_of(shown: Display | None) -> Report:
    return silent if shown is None else shown.report
