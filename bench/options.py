"""From flags to what a run is: checked, and every mistake told in one line that names the flag."""

from __future__ import annotations

import json
import math
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.arrivals import MAX_TOKENS, Closed, Load, Open, Replay, TraceError, read_trace
from bench.flags import Flags
from bench.measure import SLO
from bench.plot import KINDS
from bench.workload import Span, Workload

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
MAX_STREAMS = 10_000
MAX_REQUESTS = 10_000_000
USUAL_LEVELS = "1,8,32"
SECRET_FLAGS = ("--api-key", "--compare-api-key")


class OptionError(Exception):
    """One line that names the flag."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server is, as it was asked for."""

    url: str  # of its API, such as http://127.0.0.1:8000/v1
    model: str  # empty: its first
    api_key: str


@dataclass(frozen=True, slots=True)
class Options:
    targets: tuple[Target, ...]  # one, or two to compare
    loads: tuple[Load, ...]
    work: Workload
    requests: int  # of each level; 0: as the load has it
    warmup: int
    rounds: int
    seed: int | None
    timeout_s: float
    keep_alive: bool
    slo: SLO
    output: Path | None
    plot: Path | None

    @property
    def path(self) -> str:
        return PATHS["chat" if self.work.chat else "completions"]


def parse(flags: Flags) -> Options:
    """Raises OptionError."""
    if flags.endpoint not in PATHS:
        raise OptionError(f"--endpoint: chat or completions, not {flags.endpoint!r}")
    targets = [_target("URL", flags.url, flags.model, flags.api_key)]
    if flags.compare:
        targets.append(_target("--compare", flags.compare, flags.compare_model, flags.compare_api_key))
    work = Workload(
        chat=flags.endpoint == "chat",
        input_len=_span("--input-len", flags.input_len),
        output_len=_span("--output-len", flags.output_len),
        shared_prefix=_between("--shared-prefix", flags.shared_prefix, 0, MAX_TOKENS),
        ignore_eos=flags.ignore_eos,
        extra=_extra(flags.extra_body),
    )
    return Options(
        tuple(targets),
        _loads(flags),
        work,
        _between("--requests", flags.requests, 0, MAX_REQUESTS),
        _between("--warmup", flags.warmup, 0, MAX_STREAMS),
        _between("--rounds", flags.rounds, 0, 1000) or (3 if flags.compare else 1),
        _seed(flags.seed),
        _positive("--timeout", flags.timeout),
        flags.keep_alive,
        _slo(flags.slo),
        _file("--output", flags.output),
        _plot_file(flags.plot),
    )


def command_line(arguments: Sequence[str]) -> list[str]:
    """As a result tells it: with "..." in place of keys. `arguments`: of the process, its program first."""
    shown, is_secret = ["headrace"], False
    for argument in arguments[1:]:
        name, equals, _ = argument.partition("=")
        shown.append("..." if is_secret else f"{name}=..." if equals and name in SECRET_FLAGS else argument)
        is_secret = argument in SECRET_FLAGS
    return shown


def _target(flag: str, url: str, model: str, api_key: str) -> Target:
    try:
        parts = urllib.parse.urlsplit(url)
        port_is_wrong = parts.port == 0
    except ValueError as error:
        raise OptionError(f"{flag}: {error}: {url!r}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port_is_wrong:
        raise OptionError(f"{flag}: http://host:port or https://host, not {url!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise OptionError(f"{flag}: a URL without user, query and fragment")
    if not re.fullmatch(r"[!-~]*", api_key) or not re.fullmatch(r"[!-~]+", url):
        raise OptionError(f"{flag}: a URL and its key are visible ASCII characters")
    path = parts.path.rstrip("/") or "/v1"
    return Target(f"{parts.scheme}://{parts.netloc}{path}", model, api_key)


def _loads(flags: Flags) -> tuple[Load, ...]:
    given = [name for name in ("concurrency", "rate", "trace") if getattr(flags, name)]
    if len(given) > 1:
        raise OptionError(f"--{given[0]} and --{given[1]} are two kinds of load: give one")
    if (flags.burstiness, flags.bursts) != (1, 1) and not flags.rate:
        raise OptionError("--burstiness and --bursts say how requests come that --rate asks for")
    if flags.speed != "1" and not flags.trace:
        raise OptionError("--speed is that of a --trace")
    if flags.trace:
        try:
            entries = read_trace(Path(flags.trace))
        except TraceError as error:
            raise OptionError(f"--trace: {error}") from error
        return tuple(Replay(entries, speed) for speed in _levels("--speed", flags.speed))
    if flags.rate:
        if not 0 <= flags.burstiness <= 1000:
            raise OptionError(f"--burstiness: from 0 to 1000, not {flags.burstiness:g}")
        burst = _between("--bursts", flags.bursts, 1, MAX_STREAMS)
        return tuple(Open(rate, flags.burstiness, burst) for rate in _levels("--rate", flags.rate))
    levels = _levels("--concurrency", flags.concurrency or USUAL_LEVELS)
    if any(level != int(level) or level > MAX_STREAMS for level in levels):
        raise OptionError(f"--concurrency: whole numbers up to {MAX_STREAMS:,}, not {flags.concurrency!r}")
    return tuple(Closed(int(level)) for level in levels)


def _levels(flag: str, text: str) -> list[float]:
    levels = [_positive(flag, _number(flag, part)) for part in text.split(",")]
    if len(set(levels)) < len(levels):
        raise OptionError(f"{flag}: each level once, not {text!r}")
    return levels


def _span(flag: str, text: str) -> Span:
    found = re.fullmatch(r"(\d{1,8})(?::(\d{1,8}))?", text)
    span = Span(int(found[1]), int(found[2] or found[1])) if found else Span(0, 0)
    if not 1 <= span.low <= span.high <= MAX_TOKENS:
        raise OptionError(f"{flag}: N or LOW:HIGH, from 1 on, not {text!r}")
    return span


def _seed(text: str) -> int | None:
    if not re.fullmatch(r"\d{0,18}", text):
        raise OptionError(f"--seed: a whole number, not {text!r}")
    return int(text) if text else None


def _slo(text: str) -> SLO:
    bounds = dict[str, float]()
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        if name not in SLO.__slots__ or name in bounds:
            raise OptionError(f"--slo: ttft=MS, tpot=MS and e2e=MS, each at most once, not {part!r}")
        bounds[name] = _positive("--slo", _number("--slo", value))
    return SLO(**bounds)


def _extra(text: str) -> dict[str, Any]:
    try:
        extra = json.loads(text or "{}")
    except ValueError as error:
        raise OptionError(f"--extra-body: not JSON: {error}") from error
    if not isinstance(extra, dict):
        raise OptionError("--extra-body: not a JSON object")
    return extra


def _file(flag: str, text: str) -> Path | None:
    """Found out before the run, which may take long."""
    path = Path(text)
    if text and (path.is_dir() or not path.parent.is_dir()):
        raise OptionError(
            f"{flag}: {text!r} cannot be written: there must be such a folder, and no folder of that name"
        )
    return path if text else None


def _plot_file(text: str) -> Path | None:
    path = _file("--plot", text)
    if path and path.suffix not in KINDS:
        raise OptionError(f"--plot: a file that ends in {', '.join(KINDS)}, not {text!r}")
    if path and path.suffix == ".png":
        from bench.png import NoMatplotlib, check

        try:
            check()
        except NoMatplotlib as error:
            raise OptionError(f"--plot: {error}") from error
    return path


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"{flag}: a number, not {text!r}") from None


def _positive(flag: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise OptionError(f"{flag}: a number above 0, not {value:g}")
    return value


def _between(flag: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise OptionError(f"{flag}: from {least} to {most:,}, not {value}")
    return value
