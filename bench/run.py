"""headrace bench from flags to exit code: 0, 1 where nothing was answered, 2 for flags, 130 after Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import platform
import resource
import secrets
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from rich.console import Console

from bench.arrivals import Closed, Load
from bench.client import Client
from bench.compare import ratios
from bench.drive import Driver
from bench.flags import Flags
from bench.measure import Round, failures, figures
from bench.options import OptionError, Options, command_line, parse
from bench.plot import write
from bench.report import Level, Report
from bench.server import Server, ServerError, api_path, look_at
from bench.workload import Author

LOOK_TIMEOUT_S = 60.0  # of the questions before the run
TABLE_COLUMNS = 160  # where it goes to no terminal


@dataclass(frozen=True, slots=True)
class Side:
    """One of the servers, ready to be measured."""

    server: Server
    client: Client
    driver: Driver
    author: Author


class NothingAnswered(Exception):
    """One line."""


def main(flags: Flags, arguments: Sequence[str]) -> int:
    try:
        options = parse(flags)
    except OptionError as error:
        return _complain(str(error), 2)
    _allow_open_files()
    stopped = asyncio.Event()
    try:
        report = asyncio.run(run(options, [*arguments], stopped))
    except (ServerError, NothingAnswered) as error:
        return _complain(str(error), 130 if stopped.is_set() else 1)
    except KeyboardInterrupt:
        return 130
    code = _publish(report, options)
    return 130 if stopped.is_set() else code


async def run(options: Options, arguments: Sequence[str], stop: asyncio.Event) -> Report:
    """Raises ServerError or NothingAnswered."""
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    about = _about(options, arguments, seed)
    sides = list[Side]()
    try:
        for name, target in zip("AB", options.targets, strict=False):
            looking = Client(target.url, target.api_key, min(options.timeout_s, LOOK_TIMEOUT_S))
            try:
                server = await look_at(looking, target.url, target.model)
            finally:
                looking.close()
            client = Client(target.url, target.api_key, options.timeout_s, options.keep_alive)
            driver = Driver(client, api_path(server.url, options.path), stop)
            sides.append(Side(server, client, driver, Author(options.work, server.model, server.words, seed, name)))
        with _stopped_by_signal(stop):
            for side in sides:
                await _warm_up(side, options)
            levels = await _levels(sides, options, stop, seed)
    finally:
        for side in sides:
            side.client.close()
    if not any(each.answered for level in levels for each in level.figures):
        told = [failure for level in levels for each in level.figures for failure in each.failures]
        raise NothingAnswered("no request was answered" + (f": {told[0].name} {told[0].example}" if told else ""))
    return Report(about, tuple(side.server for side in sides), tuple(levels))


async def _warm_up(side: Side, options: Options) -> None:
    """Raises NothingAnswered: a run of failures would tell no more."""
    if options.warmup:
        load = Closed(options.warmup)
        done = await side.driver.run(load, side.author.asks(load, options.warmup, "warm-up"))
        if done.seen and not done.answered:
            told = failures(done.seen)[0]
            detail = f": {told.example}" if told.example else ""
            raise NothingAnswered(f"{side.server.url} did not answer the warm-up: {told.name}{detail}")


async def _levels(sides: Sequence[Side], options: Options, stop: asyncio.Event, seed: int) -> list[Level]:
    levels = list[Level]()
    for load in options.loads:
        rounds = await _rounds(sides, load, options, stop)
        whole = min(len(each) for each in rounds)
        compared = ratios(rounds[0][:whole], rounds[1][:whole], options.slo, seed) if len(sides) > 1 and whole else []
        levels.append(Level(load, tuple(figures(each, options.slo) for each in rounds), tuple(compared)))
        if stop.is_set():
            break
    return levels


async def _rounds(sides: Sequence[Side], load: Load, options: Options, stop: asyncio.Event) -> list[list[Round]]:
    """Of each side."""
    rounds: list[list[Round]] = [[] for _ in sides]
    num = options.requests or load.usual_requests
    for number in range(options.rounds):
        order = [*zip(sides, rounds, strict=True)]
        for side, done in order if number % 2 == 0 else order[::-1]:  # so that a machine's drift meets both
            if not stop.is_set():
                _tell(f"{load.name}, round {number + 1} of {options.rounds}: {num} requests to {side.server.url}")
                done.append(await side.driver.run(load, side.author.asks(load, num, f"{load.name}/{number}")))
    return rounds


def _about(options: Options, arguments: Sequence[str], seed: int) -> dict[str, Any]:
    work = options.work
    return {
        "command": shlex.join(command_line(arguments)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "headrace": metadata.version("headrace"),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "workload": {
            "endpoint": "chat" if work.chat else "completions",
            "input_len": str(work.input_len),
            "output_len": str(work.output_len),
            "shared_prefix": work.shared_prefix,
            "ignore_eos": work.ignore_eos,
            "extra_body": work.extra,
        },
        "seed": seed,
        "warmup": options.warmup,
        "rounds": options.rounds,
        "timeout_s": options.timeout_s,
        "keep_alive": options.keep_alive,
        "slo_ms": {name: bound for name, bound in asdict(options.slo).items() if bound is not None},
    }


def _publish(report: Report, options: Options) -> int:
    is_terminal = sys.stdout.isatty()
    report.print(Console(width=None if is_terminal else TABLE_COLUMNS, highlight=False, markup=False, soft_wrap=True))
    result = report.as_json()
    code = 0
    try:
        if options.output:
            options.output.write_text(json.dumps(result, indent=1) + "\n")
        if options.plot:
            write(options.plot, result, report.titles, report.tables())
    except OSError as error:
        code = _complain(str(error), 1)
    print(json.dumps(result), flush=True)
    return code


@contextmanager
def _stopped_by_signal(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C ends the run with what there is, a second one without."""
    loop = asyncio.get_running_loop()

    def stop_once() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, stop_once)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _allow_open_files() -> None:
    """A stream is a file, and the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        with suppress(ValueError, OSError):  # then as many as there may be
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _complain(message: str, code: int) -> int:
    _tell(f"headrace: {' '.join(message.split())}")
    return code
