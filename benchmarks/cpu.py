"""Our server on this machine's CPU, and the others that are installed beside it, each in its turn.

    make bench                                              all workloads, three rounds; with both peers 40 minutes,
                                                            and with AVX2 alone, where they are slow, over two hours
    make bench ARGS="--peers none --rounds 1"               ours alone
    make bench ARGS="--workloads c1,c8 --flag=--dtype=float32"
    make bench ARGS="--workloads none --streams 1,2,4,8,16,32,64 --contexts 128,512,1984,8000 --context-length 8192"
    make bench ARGS="--schema"                              32 streams with a JSON schema and without, ours alone
    make bench ARGS="--output benchmarks/results/x.json"    kept, from the first round on
    make bench ARGS="--output benchmarks/results/x.json --continue"      after the rounds that are in there

Servers are started one after the other, since they share the cores with each other and with the client; who is first
changes from round to round. Prompts are the same for all of them, and new in every round. Peers are looked for under
--peers-dir, or $PEERS; benchmarks/cpu_servers.py says what is expected there. Ratios within one run hold; absolute
figures are this machine's at this hour. Prints tables for people and one last line of JSON; benchmarks/cpu_plots.py
draws the sweeps of a file that was kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cpu_cases import FREE, HELD, WORKLOADS, Case, chosen, contexts_sweep, streams_sweep
from benchmarks.cpu_kept import Another, Kept, kept, part_of
from benchmarks.cpu_machine import machine
from benchmarks.cpu_servers import MODEL, OURS, PEERS, Server, StartFailed, ours, running
from benchmarks.cpu_table import Visit, by_round, lines, measured_table, needs_table, ready_s, tok_per_s
from benchmarks.load import Figures, drive

Save = Callable[[list[Visit]], None]


def arguments(argv: Sequence[str], peers_dir: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join(case.name for case in WORKLOADS)
    parser.add_argument("--workloads", type=_names, default=_names(names), help=f"of {names}; or none")
    parser.add_argument("--peers", type=_names, default=_names(",".join(PEERS)), help=f"of {','.join(PEERS)}; or none")
    parser.add_argument("--peers-dir", type=Path, default=Path(peers_dir), help="where they are installed")
    parser.add_argument("--rounds", type=_positive, default=3)
    parser.add_argument("--streams", type=_numbers, default=[], metavar="N,N", help="sweep: tok/s at so many streams")
    parser.add_argument("--contexts", type=_numbers, default=[], metavar="N,N", help="sweep: one stream after prompts")
    parser.add_argument("--context-length", type=_positive, default=2048, help="that peers are started with")
    parser.add_argument("--schema", action="store_true", help="32 streams with a JSON schema and without, ours alone")
    parser.add_argument("--flag", action="append", default=[], help="for our server, such as --flag=--dtype=float32")
    parser.add_argument("--output", type=Path, help="keep the JSON here too")
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="keep the whole rounds of --output")
    args = parser.parse_args(argv)
    if args.goes_on and not args.output:
        parser.error("--continue needs --output, where the rounds before are")
    if unknown := [name for name in args.peers if name not in PEERS]:
        parser.error(f"no peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    try:
        cases = [FREE, HELD] if args.schema else chosen(args.workloads)
    except ValueError as error:
        parser.error(str(error))
    args.cases = [*cases, *streams_sweep(args.streams), *contexts_sweep(args.contexts)]
    return args


def _names(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def servers(args: argparse.Namespace) -> list[Server]:
    """Ours first. Names the peers that are not installed."""
    found = [ours(args.flag)]
    for name in [] if args.schema else args.peers:
        peer = PEERS[name](args.peers_dir, os.cpu_count() or 1, args.context_length)
        if peer is None:
            print(f"{name} is not installed under {args.peers_dir}, and left out", flush=True)
        else:
            found.append(peer)
    return found


def measure(all_servers: Sequence[Server], cases: Sequence[Case], rounds: range, save: Save) -> list[Visit]:
    visits: list[Visit] = []
    for turn in rounds:
        first = (turn - 1) % len(all_servers)
        for server in [*all_servers[first:], *all_servers[:first]]:
            visits.append(visit(server, cases, turn))
            save(visits)
    return visits


def visit(server: Server, cases: Sequence[Case], turn: int) -> Visit:
    runs: dict[str, Figures] = {}
    try:
        with running(server) as up:
            print(f"round {turn}  {server.name:<8}  ready after {up.ready_s:.1f} s", flush=True)
            for case in cases:
                runs[case.name] = got = run(up.base_url, case, turn)
                speed = got.total_tok_per_s if case.total else got.output_tok_per_s
                failed = f"  {got.failed} of {got.requests} failed: {got.first_failure}" if got.failed else ""
                print(f"round {turn}  {server.name:<8}  {case.title:<28}  {speed:8.1f} tok/s{failed}", flush=True)
    except StartFailed as error:
        print(f"round {turn}  {server.name:<8}  {error}", flush=True)
        return Visit(turn, server.name, error=str(error))
    return Visit(turn, server.name, round(up.ready_s, 2), runs=runs)


def run(base_url: str, case: Case, turn: int) -> Figures:
    """Where all requests of the warm-up fail, such as those that are refused for their length, that is the result."""
    warm = asyncio.run(drive(base_url, MODEL, case.warm_up(turn)))
    if warm.failed == warm.requests:
        return warm
    return asyncio.run(drive(base_url, MODEL, case.seeded(turn)))


def schema_ratio(visits: Sequence[Visit]) -> float | None:
    """Throughput with a schema over that without, the median over the rounds."""
    held, free = (by_round(visits, OURS, case.name, tok_per_s(case)) for case in (HELD, FREE))
    ratios = [held[turn] / free[turn] for turn in held.keys() & free.keys()]
    return round(statistics.median(ratios), 4) if ratios else None


def command(argv: Sequence[str]) -> str:
    """As it can be called anywhere: without folders, and without where the result was kept."""
    kept = re.sub(r"--output[ =]\S+|--peers-dir[ =]\S+", "", " ".join(argv))
    flags = re.sub(r"(?<![\w/:])/(?:[^/\s]+/)*", "", kept).split()
    return f'make bench ARGS="{" ".join(flags)}"' if flags else "make bench"


def main(argv: Sequence[str], peers_dir: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    args = arguments(argv, peers_dir)
    all_servers = servers(args)
    head = {
        "benchmark": "cpu",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "command": command(argv),
        "versions": {server.name: server.version for server in all_servers},
        "flags": args.flag,
        "context_length": args.context_length,
    }

    try:
        before = kept(args.output, head, [case.name for case in args.cases]) if args.goes_on else Kept()
    except Another as error:
        sys.exit(f"cannot go on: {error}")
    rounds = range(before.rounds + 1, args.rounds + 1)

    def summary(new: Sequence[Visit]) -> dict[str, Any]:
        visits = [*before.visits, *new]
        told = {**head, "needs": [line.told() for line in lines(visits, args.cases)]}
        told["ready_s"] = {server.name: ready_s(visits, server.name) for server in all_servers}
        told["visits"] = [asdict(each) for each in visits]
        if before.parts:
            told["parts"] = [*before.parts, {**part_of(head), "rounds": len({visit.turn for visit in new})}]
        return {**told, "schema_ratio": schema_ratio(visits)} if args.schema else told

    def save(visits: Sequence[Visit]) -> None:
        if args.output:
            args.output.write_text(json.dumps(summary(visits)) + "\n")

    new = measure(all_servers, args.cases, rounds, save)
    visits = [*before.visits, *new]
    print(f"\n{measured_table(visits, args.cases)}\n\n{needs_table(lines(visits, args.cases))}\n")
    print(json.dumps(summary(new)))


if __name__ == "__main__":
    main(sys.argv[1:], os.environ.get("PEERS", "/tmp/peers"))
