"""What the HTTP application is given: the engine, the model, and its limits. Built once, by the command line."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from gateway.answers.live import Live
from gateway.engines.client import EngineClient
from gateway.engines.profiles import Profiler
from gateway.http.drain import Drain
from gateway.http.keys import Keys
from gateway.http.ratelimit import Accounts, RateLimits
from gateway.http.turnstile import Turnstile
from gateway.metrics import Metrics
from gateway.model.served import ServedModel
from gateway.rolling.rolling import Rolling
from gateway.siblings.others import Others
from gateway.timeline.store import Timelines, TimelineSink


def installed_version() -> str:
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, slots=True)
class GenerateDefaults:
    """Of POST /generate; named as its fields are."""

    temperature: float = 1.0
    top_k: int = 0  # off
    top_p: float = 1.0
    stop_on_eos: bool = True
    do_sample: bool = False  # the most likely token


@dataclass(frozen=True, slots=True)
class WebDefaults:
    """Of /chat/completions, where a request does not say."""

    temperature: float = 0.8
    top_k: int = 50  # 0: the whole vocabulary
    max_tokens: int = 512


@dataclass(frozen=True, slots=True)
class HttpSettings:
    max_body_bytes: int = 16 << 20
    body_timeout_s: float = 30.0  # for the whole body to arrive: 408 after it
    submit_timeout_s: float = 15.0  # for the engine to accept or refuse: 503 after it
    max_wait_s: float | None = 120.0  # in the engine's queue: 504 after it; None: as long as it takes
    stall_timeout_s: float = 3600.0  # without any output of a request, queue and prefill included: 504 after it
    migration: bool = True  # requests survive their engine
    migration_wait_s: float = 300.0  # for an engine to go on with a request whose engine died: 503 after it
    ping_s: float = 15.0  # between heart-beats of a stream; 0: none
    send_timeout_s: float = 30.0  # for a reader to take one chunk
    slow_reader_bytes: int = 1 << 20  # unread text of a stream, after which it is ended
    strict: bool = False  # fields without effect are refused instead of told
    max_choices: int = 128  # n
    max_sequences: int = 256  # prompts times n
    max_queued: int = 512  # sequences of one request that the engine is given at a time, and their prompts' tokens:
    max_queued_tokens: int = 1 << 19  # a part of what its queue holds, for that may have room left for others
    tokenize_threads: int = 2
    inline_chars: int = 1024  # texts up to this length are tokenised on the event loop
    retry_after_s: float = 1.0  # stated where nobody has a better estimate
    allow_origins: tuple[str, ...] = ()  # of CORS; empty: CORS is off
    metrics_auth: bool = True  # /metrics asks for a key, where there are keys
    rate_limits: RateLimits = field(default_factory=RateLimits)  # of keys without their own; without keys, of all
    max_messages: int = 10_000  # of a chat
    max_message_chars: int | None = None
    max_total_chars: int | None = None  # of all messages of a chat
    max_temperature: float = 2.0
    max_top_k: int | None = None
    max_tokens_limit: int | None = None  # what max_tokens may be at most
    web_defaults: WebDefaults = field(default_factory=WebDefaults)
    web_page: bool = False  # the chat page has them too
    log_conversations: bool = False  # of /chat/completions, with their texts
    responses_store: int = 1000  # responses that are kept; 0: none
    responses_store_bytes: int = 64 << 20  # of them all
    max_background: int = 64  # responses that run in the background
    generate: GenerateDefaults = field(default_factory=GenerateDefaults)


@dataclass(frozen=True, slots=True)
class Services:
    engine: EngineClient
    model: ServedModel
    drain: Drain
    metrics: Metrics
    settings: HttpSettings = field(default_factory=HttpSettings)
    keys: Keys | None = None  # None: nobody needs one
    profiler: Profiler | None = None  # None: it is off
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    random_bits: Callable[[int], int] = secrets.randbits
    version: str = field(default_factory=installed_version)
    turnstile: Turnstile = field(default_factory=Turnstile)
    returning: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the request that goes back to an engine
    timelines: Timelines = field(default_factory=Timelines)
    spans: TimelineSink | None = None  # of who traces requests
    live: Live = field(default_factory=Live)
    accounts: Accounts = field(default_factory=Accounts)
    others: Others | None = None  # of the first of several gateways
    rolling: Rolling | None = None  # None: it is off
