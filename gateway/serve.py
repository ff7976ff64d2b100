"""`headrace serve`, wired together: port, model, engine, application, summary, end. The order is the point here."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from gateway.cluster.options import check_ray
from gateway.config import Config, ConfigError
from gateway.engines.handles import EngineLauncher
from gateway.engines.placement import NoSuchPlace, places, visible_gpus
from gateway.engines.replicas import Replicas
from gateway.engines.supervisor import ENGINE_COMMAND, EngineSetup
from gateway.http.ending import Signals, aside, end_stragglers, end_with_stdin, within
from gateway.http.keys import Keys
from gateway.http.port import bind, bind_shared, listen_beside
from gateway.metrics import Metrics
from gateway.model.nanochat import NanochatChoice
from gateway.model.resolve import ModelRequest, ResolvedModel, resolve_model
from gateway.rolling.rolling import Rolling
from gateway.rolling.settings import Settings, Wiring
from gateway.siblings.first import Siblings
from gateway.siblings.messages import HTTP, Model, Setup
from gateway.startup import Display, Started, print_summary
from gateway.startup_log import PhaseLog, ready_line
from scheduler.protocol import EngineConfig, Progress, Ready

if TYPE_CHECKING:
    from gateway.cluster.server import Cluster
    from gateway.model.served import ServedModel
    from gateway.timeline.spans import Spans

CLOSE_ENGINE_S = 15.0
CLOSE_SIBLINGS_S = 15.0  # beyond the drain's time
CLOSE_SPANS_S = 12.0

log = logging.getLogger("headrace.serve")


class Stopped(Exception):
    """A signal came before the server was ready."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(signum.name)
        self.exit_code = 128 + signum


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All that is taken from the process, so that tests can give something else."""

    environ: Mapping[str, str]
    out: Console  # the summary
    progress: Console
    clock: Callable[[], float] = time.monotonic
    engine_command: tuple[str, ...] = ENGINE_COMMAND


def serve(config: Config, around: Surroundings) -> int:
    """Returns the exit code. Raises ConfigError, KeysError, ModelError, BindError, EngineFailed, GatewayFailed,
    ServerReplaced or Stopped."""
    began = around.clock()
    if config.end_with_stdin:
        end_with_stdin()
    gc.disable()  # until keep_what_is_there, for a start only makes what stays
    try:
        keys = keys_of(config, around.clock)
        check_spans(config)
        check_gateways(config)
        check_ray(config)
        if not config.ray:
            placed(config, around.environ)
        bound = bind if config.gateways == 1 else bind_shared
        listener = bound(config.host, config.port)  # before the model: a busy port is told at once
        with (
            listener,
            PhaseLog() if config.log_format == "json" else Display(around.progress) as display,
            joined(config) as cluster,
        ):
            known = cluster.model() if cluster is not None else None
            resolved = known or resolve_model(model_request(config), around.environ, display.report)
            return asyncio.run(_serve(_Plan(config, around, keys, listener, resolved, began, cluster), display))
    finally:
        gc.enable()


@dataclass(frozen=True, slots=True)
class _Plan:
    config: Config
    around: Surroundings
    keys: Keys | None
    listener: socket.socket
    resolved: ResolvedModel
    began: float
    cluster: Cluster | None = None  # where engines run on other machines too


async def _serve(plan: _Plan, display: Display | PhaseLog) -> int:
    signals = Signals()
    signals.install()
    launchers = await launchers_of(plan)
    metrics = Metrics(len(launchers))
    caching = plan.config.prefix_caching
    replicas = Replicas(launchers, metrics.engines, caching, lambda *told: siblings.engine_died(*told))
    rolling: Rolling | None = None

    def resolved_now() -> ResolvedModel:
        return plan.resolved if rolling is None else rolling.settings.resolved

    siblings = siblings_of(plan, replicas.folder, metrics, len(launchers), resolved_now)
    hurrying = asyncio.create_task(_pass_on(signals, siblings))
    spans: Spans | None = None
    try:
        ready, model, loading_s = await _start(plan, replicas, siblings, signals, display)
        display.close()
        from gateway.assembly import Running, keep_what_is_there, known, server_of  # imported by now: see _load

        model = known(model, plan.resolved, ready[0])
        metrics.model = model.name
        if plan.config.vllm_metric_names:
            metrics.also_as_vllm()
        spans = spans_of(plan.config, model.name)
        rolling = rolling_of(plan, replicas, siblings, signals) if plan.config.admin else None
        told = (signals, replicas.watch, replicas.folder)
        running = Running(
            *(replicas.client, metrics, plan.keys, plan.listener, *told, spans, siblings.accounts),
            others=siblings if plan.config.gateways > 1 else None,
            beside=listen_beside(replicas.folder / HTTP) if plan.config.gateways > 1 else None,
            rolling=rolling,
        )
        server = server_of(running, model, plan.config)
        keep_what_is_there()
        return await server.run(lambda: _opened(plan, siblings, ready, model, loading_s))
    finally:
        if rolling is not None:
            await rolling.close()
        await siblings.close(0.0 if signals.hurry.is_set() else plan.config.drain_timeout + CLOSE_SIBLINGS_S)
        hurrying.cancel()
        await within(CLOSE_ENGINE_S, asyncio.create_task(replicas.close()), signals.hurry)
        replicas.kill()
        if spans is not None:
            await within(CLOSE_SPANS_S, asyncio.create_task(aside(spans.close)), signals.hurry)
        await end_stragglers()


async def _pass_on(signals: Signals, siblings: Siblings) -> None:
    """What this process is told, its siblings are told."""
    for told in (signals.stop, signals.hurry):
        await told.wait()
        siblings.stop()


async def _start(
    plan: _Plan, replicas: Replicas, siblings: Siblings, signals: Signals, display: Display | PhaseLog
) -> tuple[list[Ready], ServedModel, float]:
    """The engines load their weights while this process imports the rest of itself and builds the tokenizer; the first
    failure of either counts."""

    def on_progress(progress: Progress) -> None:
        display.report(progress.phase, progress.done, progress.total)

    starting = asyncio.create_task(replicas.start(on_progress))
    loading = asyncio.create_task(asyncio.to_thread(_load, plan))
    joining = asyncio.create_task(siblings.start())
    stop = asyncio.create_task(signals.stop.wait())
    try:
        waiting: set[asyncio.Task[Any]] = {starting, loading, joining}
        while waiting:
            done, _ = await asyncio.wait({*waiting, stop}, return_when=asyncio.FIRST_COMPLETED)
            if signals.last is not None:
                raise Stopped(signals.last)
            for task in done:
                task.result()
            waiting -= done
        return starting.result(), *loading.result()
    finally:
        for task in (starting, loading, joining, stop):
            task.add_done_callback(_note_end)
            task.cancel()


def _note_end(task: asyncio.Task[Any]) -> None:
    """Of one that nobody waits for any more, because another failed first."""
    if not task.cancelled() and task.exception() is not None:
        log.debug("also failed: %r", task.exception())


def _load(plan: _Plan) -> tuple[ServedModel, float]:
    from gateway.assembly import load  # here, in a thread: most of a second, in which the engine imports torch

    began = plan.around.clock()
    model = load(plan.resolved, plan.config)
    gc.freeze()  # keep_what_is_there then passes over little
    return model, plan.around.clock() - began


def _opened(plan: _Plan, siblings: Siblings, ready: list[Ready], model: ServedModel, loading_s: float) -> None:
    siblings.open()
    _show(plan, ready, model, loading_s)


def _show(plan: _Plan, ready: list[Ready], model: ServedModel, loading_s: float) -> None:
    host, port = plan.listener.getsockname()[:2]
    started = Started(
        version=metadata.version("headrace"),
        model=model.name,
        has_chat=model.chat_template is not None,
        needs_key=plan.keys is not None,
        ready=ready[0],
        replicas=len(ready),
        host=host,
        port=port,
        phases_s=[("tokenizer", loading_s)],
        total_s=plan.around.clock() - plan.began,
    )
    if plan.config.log_format == "json":
        print(ready_line(started), file=plan.around.out.file, flush=True)
    else:
        print_summary(plan.around.out, started)


def model_request(config: Config) -> ModelRequest:
    nanochat = NanochatChoice(config.source, config.model_tag, config.step)
    is_dummy = config.load_format == "dummy"
    return ModelRequest(config.model, config.served_model_name, is_dummy, config.tokenizer, nanochat)


async def launchers_of(plan: _Plan) -> Sequence[EngineLauncher]:
    """Of each engine. Raises ConfigError."""
    if plan.cluster is not None:
        asked = engine_config(plan.config, plan.resolved)
        return await plan.cluster.launchers(asked, model_request(plan.config), plan.resolved)
    return engine_setups(plan.config, plan.resolved, plan.around.environ, plan.around.engine_command)


@contextmanager
def joined(config: Config) -> Iterator[Cluster | None]:
    """Raises ConfigError or EngineFailed."""
    if not config.ray:
        yield None
        return
    from gateway.cluster.server import Cluster

    cluster = Cluster(config)
    try:
        yield cluster
    finally:
        cluster.close()


def engine_setups(
    config: Config, resolved: ResolvedModel, environ: Mapping[str, str], command: Sequence[str] = ENGINE_COMMAND
) -> list[EngineSetup]:
    """Of each engine. Raises ConfigError."""
    found = placed(config, environ)
    asked = msgspec.structs.replace(engine_config(config, resolved), sharers=len(found))
    return [EngineSetup(asked, {**environ, **place}, command) for place in found]


def placed(config: Config, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Of each engine, what its environment has beside ours. Raises ConfigError."""
    try:
        return places(config.replicas, config.tp, config.device, visible_gpus(environ))
    except NoSuchPlace as error:
        raise ConfigError(str(error)) from error


def engine_config(config: Config, resolved: ResolvedModel) -> EngineConfig:
    return EngineConfig(
        model=str(resolved.path.resolve()),
        format=resolved.format,
        socket_path="",  # the supervisor's, another one each start
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        tp=config.tp,
        attention=config.attention,
        block_size=config.block_size,
        kv_cache_bytes=config.kv_cache_memory,
        gpu_memory_fraction=config.gpu_memory_fraction,
        max_model_len=config.max_model_len,
        max_seqs=config.max_seqs,
        max_step_tokens=config.max_step_tokens,
        mixed_prompt_tokens=config.mixed_prompt_tokens,
        max_waiting=config.max_waiting,
        max_waiting_tokens=config.max_waiting_tokens,
        prefix_caching=config.prefix_caching,
        fairness=config.fairness,
        profiling=config.debug_profile,
    )


def rolling_of(plan: _Plan, replicas: Replicas, siblings: Siblings, signals: Signals) -> Rolling:
    around = plan.around

    def launchers(settings: Settings) -> Sequence[EngineLauncher]:
        if plan.cluster is not None:
            asked = engine_config(settings.config, settings.resolved)
            return plan.cluster.changed(asked, model_request(settings.config))
        return engine_setups(settings.config, settings.resolved, around.environ, around.engine_command)

    def resolve(config: Config) -> ResolvedModel:
        return resolve_model(model_request(config), around.environ)

    settings, wiring = Settings(plan.config, plan.resolved), Wiring(resolve, launchers)
    return Rolling(replicas, siblings, settings, wiring, signals.stop.is_set)


def siblings_of(
    plan: _Plan, folder: Path, metrics: Metrics, num_engines: int, resolved_now: Callable[[], ResolvedModel]
) -> Siblings:
    """None but this process, as a rule. resolved_now: what engines were last started with, for the files of the start
    may be gone; its name stays, for it is how clients know it."""
    name = plan.resolved.name
    port = plan.listener.getsockname()[1]

    def setup(number: int) -> Setup:
        model = Model.of(replace(resolved_now(), name=name))
        return Setup(number, plan.config, plan.config.host, port, str(folder), model, num_engines)

    return Siblings(setup, plan.config.gateways, folder, metrics, plan.around.environ)


def check_gateways(config: Config) -> None:
    """Raises ConfigError."""
    if config.gateways > 1 and sys.platform != "linux":
        raise ConfigError("gateways: only Linux spreads the connections to a port over several processes")


def check_spans(config: Config) -> None:
    """Raises ConfigError."""
    endpoint = config.otlp_traces_endpoint
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"otlp_traces_endpoint: {endpoint!r} is no http:// or https:// address")
    if endpoint and importlib.util.find_spec("opentelemetry") is None:
        raise ConfigError("otlp_traces_endpoint needs more packages: pip install 'headrace[otel]'")


def spans_of(config: Config, model: str) -> Spans | None:
    if not config.otlp_traces_endpoint:
        return None
    from gateway.timeline.spans import Spans

    return Spans.to(config.otlp_traces_endpoint, model, metadata.version("headrace"))


def keys_of(config: Config, clock: Callable[[], float]) -> Keys | None:
    """Raises KeysError."""
    if not config.api_key and not config.api_key_file:
        return None
    return Keys(config.api_key, Path(config.api_key_file) if config.api_key_file else None, clock)
