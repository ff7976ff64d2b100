"""What a person sees while the server starts: progress of each phase, then a summary. Decides nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gateway.config import format_size
from gateway.http.port import shown
from scheduler.protocol import Ready

RESERVED_BLOCKS = 2  # of the KV cache; they hold no tokens
LEAST_BYTES = 1 << 20  # a total over this counts bytes: no phase has as many tensors or steps


class AmountColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(amount(int(task.completed), int(task.total or 0)))


def amount(done: int, total: int) -> str:
    if total >= LEAST_BYTES:
        return f"{format_size(done)} of {format_size(total)}"
    return f"{done} of {total}" if total else ""


class Display:
    """Bars on a terminal; elsewhere one plain line as each phase begins."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), AmountColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._phases: set[str] = set()

    def __enter__(self) -> Display:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._bars:
            self._bars.stop()

    def report(self, phase: str, done: int, total: int) -> None:
        if self._bars is None:
            self._announce(phase, total)
            return
        if phase not in self._tasks:
            for before in self._tasks.values():  # phases come one after another
                self._end_bar(self._bars, before)
            self._tasks[phase] = self._bars.add_task(phase, total=None)
        self._bars.update(self._tasks[phase], completed=done, total=total or None)

    def _end_bar(self, bars: Progress, task: TaskID) -> None:
        if bars.tasks[task].total is None:
            bars.update(task, completed=0, total=0)  # a full bar without an amount
        bars.stop_task(task)

    def _announce(self, phase: str, total: int) -> None:
        if phase not in self._phases:
            self._phases.add(phase)
            size = f" ({format_size(total)})" if total >= LEAST_BYTES else ""
            self._console.print(f"{phase}{size} ...", soft_wrap=True, markup=False, highlight=False)


@dataclass(frozen=True, slots=True)
class Started:
    """What the summary tells of."""

    version: str
    model: str
    has_chat: bool
    ready: Ready  # the first engine's
    replicas: int
    host: str
    port: int
    phases_s: Sequence[tuple[str, float]]  # the gateway's own
    total_s: float
    needs_key: bool = False

    @property
    def base_url(self) -> str:
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{shown(reachable, self.port)}"


def memory_split(ready: Ready) -> str:
    parts = {"weights": ready.weights_bytes, "KV cache": ready.kv_cache_bytes, "steps and graphs": ready.working_bytes}
    return ", ".join(f"{name} {format_size(size)}" for name, size in parts.items() if size)


def kv_cache_tokens(ready: Ready) -> int:
    return (ready.num_blocks - RESERVED_BLOCKS) * ready.block_size


def summary_rows(started: Started) -> list[tuple[str, str]]:
    ready = started.ready
    num_tokens = kv_cache_tokens(ready)
    num_blocks = num_tokens // ready.block_size
    phases = [*started.phases_s, *ready.phases_s]
    return [
        ("model", f"{started.model}: {ready.architecture}, {ready.num_parameters / 1e6:,.1f} M parameters"),
        ("device", f"{ready.device}, {ready.dtype}, attention by {ready.attention}"),
        *([("replicas", f"{started.replicas}, each with what follows")] if started.replicas > 1 else []),
        ("memory", memory_split(ready)),
        (
            "KV cache",
            f"{num_tokens:,} tokens in {num_blocks:,} blocks of {ready.block_size}: "
            f"{num_tokens / ready.max_model_len:.1f} requests of full context",
        ),
        (
            "limits",
            f"{ready.max_model_len:,} tokens a request, {ready.max_seqs} sequences at a time, "
            f"{ready.max_step_tokens:,} tokens a step",
        ),
        ("started in", f"{started.total_s:.1f} s: " + ", ".join(f"{name} {s:.1f} s" for name, s in phases)),
        ("URL", f"{started.base_url}/v1"),
        ("chat page", f"{started.base_url}/"),
        ("docs", f"{started.base_url}/docs"),
    ]


def curl_line(started: Started) -> str:
    """Answers as it stands, where the variable holds the key if one is needed."""
    body: dict[str, object] = {"model": started.model}
    if started.has_chat:
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": "What is the capital of France?"}]
        body |= {"max_tokens": 64, "temperature": 0}
    else:
        path = "/v1/completions"
        body |= {"prompt": "The capital of France is", "max_tokens": 16}
    headers = f"-H {shlex.quote('content-type: application/json')}"
    if started.needs_key:
        headers += ' -H "authorization: Bearer $HEADRACE_API_KEY"'
    return f"curl {started.base_url}{path} {headers} -d {shlex.quote(json.dumps(body))}"


def print_summary(console: Console, started: Started) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in summary_rows(started):
        table.add_row(label, Text(text))
    console.print(f"headrace {started.version} is ready", soft_wrap=True, style="bold", highlight=False)
    if console.is_terminal:
        console.print(table)
    else:
        for label, text in summary_rows(started):  # as long as it is: no width to fold at
            console.print(f"{label:<12}{text}", soft_wrap=True, markup=False, highlight=False)
    console.print(curl_line(started), soft_wrap=True, markup=False, highlight=False)
