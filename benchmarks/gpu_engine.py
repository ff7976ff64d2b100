"""The engine in this process: the real build, scheduler, runner and step loop, no sockets. Frames are still made."""

from __future__ import annotations

import gc
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine.build import Phases, build
from engine.compiling import CompileQueue
from engine.grammar import Compiler
from engine.loop import Loop
from engine.parallel.leader import Leader
from engine.parallel.messages import SOLE
from engine.parallel.ranks import Loss, Ranks, end_process
from scheduler.plan import PromptResult, StepPlan, StepResult, TokenLogprob
from scheduler.protocol import (
    Abort,
    EngineConfig,
    FromEngine,
    Outputs,
    Ready,
    Rejection,
    StepRecord,
    Submit,
    ToEngine,
    Vocabulary,
    encode_frame,
)
from scheduler.types import SamplingParams

CONNECTION = 1
PATIENCE_S = 60.0  # without a step


@dataclass(frozen=True, slots=True)
class Job:
    prompt: list[int]
    params: SamplingParams
    leave_after: int = 0  # tokens after which it is aborted; 0: it stays


@dataclass(slots=True)
class Answer:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt: PromptResult | None = None
    cached_tokens: int = 0
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    ended_at: float
    record: StepRecord


class WrongAnswer(RuntimeError):
    """A job was refused or failed: figures of such a run mean nothing."""


class StubServer:
    """What the step loop sees in place of its sockets: one gateway, that reads at once."""

    congested = False

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.steps: list[Step] = []
        self.leaving: dict[int, int] = {}
        self.num_open = 0
        self._inbox: list[tuple[int, ToEngine]] = []
        self._aborts: list[tuple[int, Abort]] = []

    @property
    def connections(self) -> list[int]:
        return [CONNECTION]

    def put(self, message: ToEngine) -> None:
        self._inbox.append((CONNECTION, message))

    def take(self) -> list[tuple[int, ToEngine]]:
        taken, self._inbox = self._inbox, []
        return taken

    def take_aborts(self) -> list[tuple[int, Abort]]:
        taken, self._aborts = self._aborts, []
        return taken

    def wait(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.001))

    def wake(self) -> None:
        """Nobody sleeps for long."""

    def send(self, connection: int, message: FromEngine) -> None:
        encode_frame(message)
        if isinstance(message, Rejection):
            raise WrongAnswer(f"{message.code}: {message.message}")
        if isinstance(message, Outputs):
            self._note(message)

    def _note(self, message: Outputs) -> None:
        self.steps += [Step(time.perf_counter(), step) for step in message.steps]
        for output in message.outputs:
            answer = self.answers[output.seq_id]
            answer.tokens += output.tokens
            answer.logprobs += output.logprobs or []
            if output.first is not None:
                answer.prompt, answer.cached_tokens = output.first.prompt, output.first.cached_tokens
            if output.finish is not None:
                answer.finish = output.finish
                self.num_open -= 1
            elif len(answer.tokens) >= self.leaving.get(output.seq_id, 1 << 60):
                del self.leaving[output.seq_id]
                self.num_open -= 1
                self._aborts.append((CONNECTION, Abort([output.seq_id])))


class TimedRunner:
    """An executor, and how long the host spent in it."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.launch_s = self.finish_s = 0.0
        self.around: Callable[[str], Any] | None = None  # gives a context for "launch" and "finish"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    @property
    def ahead(self) -> int:
        return int(self._runner.ahead)

    def launch(self, plan: StepPlan) -> None:
        began = time.perf_counter()
        self._call("launch", lambda: self._runner.launch(plan))
        self.launch_s += time.perf_counter() - began

    def finish(self) -> StepResult:
        began = time.perf_counter()
        result: StepResult = self._call("finish", self._runner.finish)
        self.finish_s += time.perf_counter() - began
        return result

    def _call(self, name: str, call: Callable[[], Any]) -> Any:
        if self.around is None:
            return call()
        with self.around(name):
            return call()


@dataclass(frozen=True, slots=True)
class Run:
    """What became of some jobs."""

    answers: list[Answer]
    steps: list[Step]
    began: float
    wall_s: float
    launch_s: float  # of the host, in the runner
    finish_s: float  # likewise: mostly waiting for the device


class LocalEngine:
    def __init__(self, config: EngineConfig, words: Sequence[bytes] | None = None) -> None:
        """words: the vocabulary, for grammars; the last id ends an answer."""
        self.seconds: dict[str, float] = {}
        began = time.perf_counter()
        self._phases = Phases(lambda *_: None)
        self._ranks = Ranks(config, _end) if config.tp > 1 else None
        self.scheduler, built, ready = build(config, self._phases, self._ranks.seat if self._ranks else SOLE)
        runner = Leader(built, self._ranks) if self._ranks else built
        self.ready: Ready = ready
        self.start_s = time.perf_counter() - began
        self.runner = TimedRunner(runner)
        self._server = StubServer()
        grammars = CompileQueue(
            lambda told: Compiler(told, ready.vocab_size).compile, self._server.wake, time.monotonic
        )
        self._loop = Loop(self.scheduler, self.runner, self._server, ready.vocab_size, grammars)  # type: ignore[arg-type]
        self._grammars = grammars
        self._ids = itertools.count()
        if words is not None:
            self._server.put(Vocabulary(list(words), [], [len(words) - 1]))

    def run(self, jobs: Sequence[Job]) -> Run:
        """All jobs at once, to their ends. Raises WrongAnswer."""
        server, runner = self._server, self.runner
        ids = [next(self._ids) for _ in jobs]
        launch_s, finish_s, num_steps = runner.launch_s, runner.finish_s, len(server.steps)
        server.answers = {id: Answer() for id in ids}
        server.leaving = {id: job.leave_after for id, job in zip(ids, jobs, strict=True) if job.leave_after}
        server.num_open = len(jobs)
        began = time.perf_counter()
        for id, job in zip(ids, jobs, strict=True):
            server.put(Submit([id], job.prompt, job.params, [job.params.seed]))
        self._turn_until_done()
        wall = time.perf_counter() - began
        while self._loop.turn():  # plans of sequences that have left
            pass
        self.scheduler.check()
        answers = [server.answers[id] for id in ids]
        failed = [answer.finish for answer in answers if answer.finish in ("error", "expired", "grammar")]
        if failed:
            raise WrongAnswer(f"{len(failed)} of {len(jobs)} jobs ended with {failed[0]!r}; the log says why")
        spent = runner.launch_s - launch_s, runner.finish_s - finish_s
        return Run(answers, server.steps[num_steps:], began, wall, *spent)

    def _turn_until_done(self) -> None:
        last = time.monotonic()
        while self._server.num_open:
            if self._loop.turn():
                last = time.monotonic()
            elif time.monotonic() - last > PATIENCE_S:
                raise WrongAnswer(f"nothing happens, and {self._server.num_open} jobs have not ended")
            else:
                self._server.wait(0.001)

    def close(self) -> None:
        """Gives the memory back."""
        self._grammars.close()
        if self._ranks is not None:
            self._ranks.close()
        del self._loop, self.runner, self.scheduler
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def told(self) -> dict[str, Any]:
        ready = self.ready
        return {
            "start_s": round(self.start_s, 2),
            "phases_s": ready.phases_s,
            "device": ready.device,
            "dtype": ready.dtype,
            "attention": ready.attention,
            "kv_tokens": (ready.num_blocks - 2) * ready.block_size,
            "max_seqs": ready.max_seqs,
            "max_step_tokens": ready.max_step_tokens,
            "weights_bytes": ready.weights_bytes,
        }


def _end(loss: Loss) -> None:
    print(f"the ranks have come to their end: {loss.message}", flush=True)
    end_process(was_killed=False)


def engine_config(folder: Path, device: str, overrides: dict[str, str], **values: Any) -> EngineConfig:
    """overrides: from the command line, as text."""
    whole = {"model": str(folder), "format": "dummy", "socket_path": "", "device": device} | values | overrides
    return msgspec.convert(whole, EngineConfig, strict=False)


def greedy(prompts: list[list[int]], out: list[int]) -> list[Job]:
    params = SamplingParams(max_tokens=0, temperature=0.0)
    return [
        Job(prompt, msgspec.structs.replace(params, max_tokens=most)) for prompt, most in zip(prompts, out, strict=True)
    ]


def kinds(steps: list[Step]) -> dict[str, dict[str, float]]:
    """How many steps there were of each kind, their tokens, and the seconds they took."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: {"steps": 0, "tokens": 0, "s": 0.0})
    for step in steps:
        one = sums[step.record.kind]
        one["steps"] += 1
        one["tokens"] += step.record.num_tokens
        one["s"] += step.record.seconds
    return {kind: {**one, "s": round(one["s"], 3)} for kind, one in sums.items()}
