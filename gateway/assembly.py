"""What serves once the engine runs: tokenizer, application, HTTP server. To import it takes as long as to import all
else of the gateway three times over, so `serve` does it while the engine starts."""

from __future__ import annotations

import gc
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp

from gateway.answers.live import Live
from gateway.config import Config
from gateway.engines.calculator import CalculatingEngine
from gateway.engines.client import EngineClient
from gateway.engines.profiles import Profiler
from gateway.engines.router import Router
from gateway.engines.socket import SocketEngine
from gateway.engines.vocabulary import vocabulary_of
from gateway.http.app import create_app
from gateway.http.drain import Drain
from gateway.http.ending import Signals
from gateway.http.keys import Keys
from gateway.http.lifecycle import Server
from gateway.http.ratelimit import Accounts, RateLimits
from gateway.metrics import Metrics
from gateway.model.load import fitted, load_nanochat, load_served_model
from gateway.model.resolve import ResolvedModel
from gateway.model.served import ServedModel
from gateway.rolling.rolling import Rolling
from gateway.services import GenerateDefaults, HttpSettings, Services, WebDefaults
from gateway.siblings.others import Others
from gateway.timeline.store import Timelines, TimelineSink
from scheduler.protocol import Ready

YOUNG_OBJECTS = 20_000  # that start a collection: of some seventy requests


def load(resolved: ResolvedModel, config: Config) -> ServedModel:
    created = int(resolved.path.stat().st_mtime)
    if resolved.format == "nanochat":
        assert resolved.tokenizer is not None
        return load_nanochat(resolved.path, resolved.tokenizer, resolved.name, created, config.tool_parser)
    return load_served_model(resolved.path, resolved.name, created, config.tool_parser, resolved.tokenizer)


@dataclass(frozen=True, slots=True)
class Running:
    """What is there before the model is."""

    engine: SocketEngine | Router
    metrics: Metrics
    keys: Keys | None
    listener: socket.socket
    signals: Signals
    watch: Callable[[], Awaitable[None]]
    folder: Path  # private to the process, and gone with it
    spans: TimelineSink | None = None
    accounts: Accounts = field(default_factory=Accounts)
    timelines: Timelines | None = None  # as the configuration says
    live: Live = field(default_factory=Live)
    others: Others | None = None
    beside: socket.socket | None = None  # listens already; the same is served there
    rolling: Rolling | None = None


def server_of(
    running: Running, model: ServedModel, config: Config, around: Callable[[ASGIApp], ASGIApp] = lambda app: app
) -> Server:
    """around: what the application is seen through."""
    running.engine.teach(vocabulary_of(model))
    services = Services(
        engine=engine_for(model, running.engine, config),
        model=model,
        drain=Drain(),
        metrics=running.metrics,
        settings=http_settings(config),
        keys=running.keys,
        timelines=running.timelines or Timelines(config.timelines),
        spans=running.spans,
        profiler=Profiler(running.engine, running.folder) if config.debug_profile else None,
        accounts=running.accounts,
        live=running.live,
        others=running.others,
        rolling=running.rolling,
    )
    return Server(
        app=around(create_app(services)),
        listener=running.listener,
        drain=services.drain,
        signals=running.signals,
        drain_timeout_s=config.drain_timeout,
        watch=running.watch,
        beside=running.beside,
    )


def known(model: ServedModel, resolved: ResolvedModel, ready: Ready) -> ServedModel:
    """With what the engine alone can tell of it. Raises ModelError."""
    if resolved.tokenizer is None or resolved.format == "nanochat":
        return model
    return fitted(model, ready.vocab_size, ready.max_model_len)


def engine_for(model: ServedModel, engine: EngineClient, config: Config) -> EngineClient:
    """As requests see it."""
    return CalculatingEngine(engine, model.tokenizer) if model.calculates and config.calculator else engine


def keep_what_is_there() -> None:
    """Garbage collections pass over all that start-up has made, above all a vocabulary. They looked at it whenever
    requests had left enough behind, and every stream stood still meanwhile: docs/log.md."""
    gc.collect()
    gc.enable()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)


# Engines that hang are found out by their silence, long before any request could tell.
LONGEST_PREFILL_S = 3600.0
UNSTALLED_S = 30 * 86400.0


def http_settings(config: Config) -> HttpSettings:
    return HttpSettings(
        max_body_bytes=config.max_body,
        strict=config.strict,
        max_wait_s=config.max_wait or None,
        stall_timeout_s=config.max_wait + LONGEST_PREFILL_S if config.max_wait else UNSTALLED_S,
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
        web_defaults=WebDefaults(config.web_temperature, config.web_top_k, config.web_max_tokens),
        web_page=config.web_page,
        log_conversations=config.log_conversations,
        responses_store=config.responses_store,
        responses_store_bytes=config.responses_store_memory,
        max_background=config.max_background,
        generate=GenerateDefaults(
            temperature=config.generate_temperature,
            top_k=config.generate_top_k,
            top_p=config.generate_top_p,
            stop_on_eos=config.generate_stop_on_eos,
            do_sample=config.generate_do_sample,
        ),
    )
