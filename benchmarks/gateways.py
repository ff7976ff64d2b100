"""Chunks that several gateways stream beside one, over an engine that computes nothing, and what limits them.

    python -m benchmarks.gateways
    python -m benchmarks.gateways --gateways 1,2,4,8 --clients 8 --streams 512

Every process shares the machine's cores: gateways, an engine for each, clients. So beside the chunks/s stand the cores
that each kind took, those that other machines of the same host took away ("stolen", by Linux), and "most": how many
times one gateway's chunks/s there could be if all cores were busy with the work that a chunk takes, as it was with one
gateway. Rounds in turn, medians; one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.gateway_cost import LEAD_S, MODEL, PATHS, cpu_s, gateway, numbers
from benchmarks.lean_client import Seen, Work, body, drive
from benchmarks.load import WORDS

KINDS = {"gateway": ("gateway.siblings", "benchmarks.gateway_cost"), "engine": ("benchmarks.null_engine",)}
PATH = "completions"


def family(pid: int) -> list[int]:
    """A process, its children, and theirs."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def spent(pid: int) -> dict[str, float]:
    """Processor seconds so far, by kind."""
    total = dict.fromkeys(KINDS, 0.0)
    for each in family(pid):
        command = Path(f"/proc/{each}/cmdline").read_text().replace("\0", " ")
        kind = next((kind for kind, names in KINDS.items() if any(name in command for name in names)), None)
        if kind is not None:
            total[kind] += cpu_s(each)
    return total


def stolen_s() -> float:
    """Processor seconds that this machine wanted and did not get."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def drive_and_tell(work: Work) -> tuple[Seen, float]:
    """In a client's process: and its processor time."""
    before = time.process_time()
    return drive(work), time.process_time() - before


def measure(count: int, args: argparse.Namespace, pool: ProcessPoolExecutor) -> dict[str, float]:
    with gateway(args.step_ms, count) as (pid, port):
        round_of(pid, port, args, pool, tokens=16)  # warm
        return round_of(pid, port, args, pool, args.tokens)


def round_of(pid: int, port: int, args: argparse.Namespace, pool: ProcessPoolExecutor, tokens: int) -> dict[str, float]:
    bodies = [body(MODEL, PATH, " ".join(WORDS[:16]), tokens) for _ in range(args.streams)]
    start_at = time.monotonic() + LEAD_S
    work = [Work(port, PATHS[PATH], bodies[place :: args.clients], 1, start_at) for place in range(args.clients)]
    asked = [pool.submit(drive_and_tell, each) for each in work]
    time.sleep(LEAD_S * 0.9)
    before, stolen = spent(pid), stolen_s()
    told = [each.result() for each in asked]
    after, stolen = spent(pid), stolen_s() - stolen
    wall = max(seen.ended_at for seen, _ in told) - start_at
    events = sum(seen.events for seen, _ in told)
    cores = {kind: (after[kind] - before[kind]) / wall for kind in KINDS}
    cores["client"] = sum(cpu for _, cpu in told) / wall
    cores["stolen"] = stolen / wall
    return {"chunks_per_s": events / wall, "tokens": sum(seen.tokens for seen, _ in told), **cores}


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=numbers, default=[1, 2, 4])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--clients", type=int, default=2, help="processes")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seen: dict[int, list[dict[str, float]]] = {count: [] for count in args.gateways}
    with ProcessPoolExecutor(args.clients, multiprocessing.get_context("spawn")) as pool:
        for _ in range(args.rounds):
            for count in args.gateways:
                seen[count].append(measure(count, args, pool))
                print(count, middle(seen[count][-1:]), flush=True)
    rows = {count: middle(rounds) for count, rounds in seen.items()}
    one = rows[args.gateways[0]]
    cores = os.cpu_count() or 1
    for row in rows.values():
        row["ratio"] = round(row["chunks_per_s"] / one["chunks_per_s"], 2)
        row["most"] = round(cores / sum(one[kind] for kind in (*KINDS, "client")), 2)
    for count, row in rows.items():
        print(count, row)
    summary = {"benchmark": "gateways", "cores": cores, "python": sys.version.split()[0], "streams": args.streams}
    print(json.dumps({**summary, "tokens": args.tokens, "rows": rows}))


if __name__ == "__main__":
    main()
