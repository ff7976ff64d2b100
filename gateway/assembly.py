"""What serves once the engine runs: tokenizer, application, HTTP server. To import it takes as long as to import all
else of the gateway three times over, so `serve` does it while the engine starts."""

from __future__ import annotations

import gc
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.config import Config
from gateway.engines.profiles import Profiler
from gateway.engines.socket import SocketEngine
from gateway.engines.vocabulary import vocabulary_of
from gateway.http.app import create_app
from gateway.http.drain import Drain
from gateway.http.ending import Signals
from gateway.http.keys import Keys
from gateway.http.lifecycle import Server
from gateway.http.ratelimit import RateLimits
from gateway.metrics import Metrics
from gateway.model.load import load_served_model
from gateway.model.resolve import ResolvedModel
from gateway.model.served import ServedModel
from gateway.services import HttpSettings, Services
from gateway.timeline.store import Timelines, TimelineSink

YOUNG_OBJECTS = 20_000  # that start a collection: of some seventy requests


def load(resolved: ResolvedModel, config: Config) -> ServedModel:
    created = int(resolved.path.stat().st_mtime)
    return load_served_model(resolved.path, resolved.name, created, config.tool_parser)


@dataclass(frozen=True, slots=True)
class Running:
    """What is there before the model is."""

    engine: SocketEngine
    metrics: Metrics
    keys: Keys | None
    listener: socket.socket
    signals: Signals
    watch: Callable[[], Awaitable[None]]
    folder: Path  # private to the process, and gone with it
    spans: TimelineSink | None = None


def server_of(running: Running, model: ServedModel, config: Config) -> Server:
    running.engine.teach(vocabulary_of(model))
    services = Services(
        engine=running.engine,
        model=model,
        drain=Drain(),
        metrics=running.metrics,
        settings=http_settings(config),
        keys=running.keys,
        timelines=Timelines(config.timelines),
        spans=running.spans,
        profiler=Profiler(running.engine, running.folder) if config.debug_profile else None,
    )
    return Server(
        app=create_app(services),
        listener=running.listener,
        drain=services.drain,
        signals=running.signals,
        drain_timeout_s=config.drain_timeout,
        watch=running.watch,
    )


def keep_what_is_there() -> None:
    """Garbage collections pass over all that start-up has made, above all a vocabulary. They looked at it whenever
    requests had left enough behind, and every stream stood still meanwhile: docs/log.md."""
    gc.collect()
    gc.enable()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)


def http_settings(config: Config) -> HttpSettings:
    return HttpSettings(
        max_body_bytes=config.max_body,
        strict=config.strict,
        max_wait_s=config.max_wait or None,
        migration=config.migration,
        allow_origins=(config.cors_origin,) if config.cors_origin else (),
        metrics_auth=config.metrics_auth,
        rate_limits=RateLimits(config.limit_rpm, config.limit_tpm, config.limit_concurrency),
        max_queued=max(1, config.max_waiting // 2),
        max_queued_tokens=max(1, config.max_waiting_tokens // 2),
        max_messages=config.max_messages,
        max_message_chars=config.max_message_chars or None,
        max_total_chars=config.max_total_chars or None,
        max_temperature=config.max_temperature,
        max_top_k=config.max_top_k or None,
        max_tokens_limit=config.max_tokens_limit or None,
        responses_store=config.responses_store,
        responses_store_bytes=config.responses_store_memory,
        max_background=config.max_background,
    )
