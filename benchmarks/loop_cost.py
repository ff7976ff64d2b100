"""What the engine's loop costs beside the device: steps over an executor that has its tokens at once.

    python -m benchmarks.loop_cost                        256 sequences of 300 tokens, 5 rounds
    python -m benchmarks.loop_cost --stub                 encoded frames are dropped instead of sent
    python -m benchmarks.loop_cost --profile              and which functions the time goes to

Only steps in which every sequence decodes are counted. `send` is encoding and the socket, `rest` what lies between:
events to outputs, the inbox, the stages' own timers. Low percentiles say what the code costs, high ones what the
machine's other work, garbage collection and blocks that fill up at the same time add. Ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import pstats
import socket
import statistics
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.compiling import CompileQueue
from engine.grammar import Matchers
from engine.loop import Loop
from engine.server import Server
from scheduler.blocks import BlockPool
from scheduler.plan import StepPlan, StepResult
from scheduler.protocol import Submit, encode_frame
from scheduler.scheduler import Scheduler
from scheduler.types import Limits, SamplingParams

PROMPT_LEN = 128
BLOCK_SIZE = 16
VOCAB_SIZE = 50_000
STEP_TOKENS = 8192
STAGES = ("plan", "launch", "finish", "commit", "send")
PERCENTILES = (10, 50, 99)


class NullExecutor:
    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.matchers = Matchers()
        self._launched: deque[int] = deque()

    def launch(self, plan: StepPlan) -> None:
        self._launched.append(sum([work.sample for work in plan.works]))

    def finish(self) -> StepResult:
        return StepResult([12345] * self._launched.popleft(), [])


class StubServer:
    """One gateway that is always there."""

    congested = False

    def __init__(self) -> None:
        self.connections = [1]
        self._inbox: list[tuple[int, Any]] = []

    def submit(self, message: Submit) -> None:
        self._inbox.append((1, message))

    def take(self) -> list[tuple[int, Any]]:
        taken, self._inbox = self._inbox, []
        return taken

    def take_aborts(self) -> list[tuple[int, Any]]:
        return []

    def send(self, connection: int, message: Any) -> None:
        encode_frame(message)

    def wake(self) -> None:
        pass


class Stopwatch:
    """Seconds spent in the methods that it was put around, until `lap`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    def around(self, owner: Any, stage: str) -> None:
        call, seconds = getattr(owner, stage), self._seconds

        def timed(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args)
            finally:
                seconds[stage] += time.perf_counter() - started

        setattr(owner, stage, timed)

    def lap(self) -> dict[str, float]:
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken


class World:
    def __init__(self, server: Any, num_seqs: int, max_tokens: int, ahead: int) -> None:
        limits = Limits(num_seqs, STEP_TOKENS, PROMPT_LEN + max_tokens, BLOCK_SIZE, max_waiting=num_seqs)
        num_blocks = 2 + 2 * num_seqs * (PROMPT_LEN + max_tokens) // BLOCK_SIZE
        self.scheduler = Scheduler(limits, BlockPool(num_blocks, BLOCK_SIZE), time.monotonic)
        runner = NullExecutor(ahead)
        grammars = CompileQueue(lambda told: NotImplemented, server.wake, time.monotonic)
        self.watch = Stopwatch()
        for owner, stage in zip((self.scheduler, runner, runner, self.scheduler, server), STAGES, strict=True):
            self.watch.around(owner, stage)
        self.loop = Loop(self.scheduler, runner, server, VOCAB_SIZE, grammars)

    def round(self, num_seqs: int, max_tokens: int) -> list[dict[str, float]]:
        """Seconds by stage of each step. What was submitted is taken in, decoded and ended."""
        while not self._all_decode(num_seqs):
            self.loop.turn()
        self.watch.lap()
        num_steps = max_tokens - num_seqs * PROMPT_LEN // STEP_TOKENS - 4  # before the first sequence ends
        steps = [self._step() for _ in range(num_steps)]
        assert self.scheduler.stats().running == num_seqs, "some have ended while the clock ran"
        while self.scheduler.has_work:
            self.loop.turn()
        return steps

    def _step(self) -> dict[str, float]:
        started = time.perf_counter()
        self.loop.turn()
        total = time.perf_counter() - started
        stages = self.watch.lap()
        return stages | {"rest": total - sum(stages.values()), "total": total}

    def _all_decode(self, num_seqs: int) -> bool:
        stats = self.scheduler.stats()
        return stats.running == num_seqs and not stats.waiting


def prompts(num_seqs: int, max_tokens: int, turn: int) -> Iterator[Submit]:
    """Different ones: nothing is found in the prefix cache."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    for index in range(num_seqs):
        seq_id = turn * num_seqs + index
        yield Submit([seq_id], [seq_id] * PROMPT_LEN, params, [0])


def read_on(path: str, num_seqs: int, max_tokens: int, rounds: int) -> None:
    """The gateway: a process of its own, as in life. Submits a round, reads until it has heard the end of it."""
    from scheduler.protocol import FrameSplitter, Outputs, from_engine_decoder

    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        splitter = FrameSplitter()
        for turn in range(rounds):
            sock.sendall(b"".join(map(encode_frame, prompts(num_seqs, max_tokens, turn))))
            running = num_seqs
            while running:
                data = sock.recv(1 << 20)
                if not data:
                    return
                for body in splitter.feed(data):
                    message = from_engine_decoder.decode(body)
                    if isinstance(message, Outputs):
                        running -= sum(output.finish is not None for output in message.outputs)


@contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    profile = cProfile.Profile()
    with profile:
        yield
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def with_stub(num_seqs: int, max_tokens: int, rounds: int, ahead: int) -> list[dict[str, float]]:
    server = StubServer()
    world = World(server, num_seqs, max_tokens, ahead)
    steps = []
    for turn in range(rounds):
        for message in prompts(num_seqs, max_tokens, turn):
            server.submit(message)
        steps += world.round(num_seqs, max_tokens)
    return steps


def with_socket(num_seqs: int, max_tokens: int, rounds: int, ahead: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        server = Server(path)
        reader = multiprocessing.get_context("spawn").Process(
            target=read_on, args=(path, num_seqs, max_tokens, rounds), daemon=True
        )
        reader.start()
        try:
            world = World(server, num_seqs, max_tokens, ahead)
            return [step for _ in range(rounds) for step in world.round(num_seqs, max_tokens)]
        finally:
            reader.join(30)
            server.close(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ahead", type=int, default=1)
    parser.add_argument("--stub", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    measure: Callable[..., list[dict[str, float]]] = with_stub if args.stub else with_socket
    with profiled(args.profile):
        steps = measure(args.num_seqs, args.max_tokens, args.rounds, args.ahead)
    print(f"{args.num_seqs} sequences, microseconds a step, percentiles of {len(steps)} steps")
    print(" " * 8, *(f"{f'p{percent}':>8}" for percent in PERCENTILES))
    report: dict[str, list[float]] = {}
    for stage in (*STAGES, "rest", "total"):
        cuts = statistics.quantiles([step[stage] * 1e6 for step in steps], n=100)
        report[stage] = [round(cuts[percent - 1], 1) for percent in PERCENTILES]
        print(f"{stage:>8}", *(f"{us:8.0f}" for us in report[stage]))
    print(json.dumps({"num_seqs": args.num_seqs, "percentiles": PERCENTILES, "us": report}))


if __name__ == "__main__":
    main()
