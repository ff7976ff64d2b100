"""What a person sees while many prompts run. Decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from gateway.http.exchange import Exchange


@dataclass(slots=True)
class Tally:
    """Of the requests of one call. Used on the event loop."""

    num_asked: int
    num_done: int = 0
    open: dict[int, Exchange] = field(default_factory=dict)
    _prompt_tokens: int = 0
    _generated_tokens: int = 0

    def end(self, key: int) -> None:
        exchange = self.open.pop(key)
        self.num_done += 1
        self._prompt_tokens += exchange.prompt_tokens
        self._generated_tokens += exchange.generated_tokens

    @property
    def prompt_tokens(self) -> int:
        """Of those that have begun to answer."""
        begun = (exchange for exchange in self.open.values() if exchange.ttft_s is not None)
        return self._prompt_tokens + sum(exchange.prompt_tokens for exchange in begun)

    @property
    def generated_tokens(self) -> int:
        return self._generated_tokens + sum(exchange.generated_tokens for exchange in self.open.values())


class Bar:
    """How many are done, how long it took and may still take, and tokens a second since it began."""

    def __init__(self, tally: Tally, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        speeds = TextColumn("{task.fields[speeds]}")
        self._bars = Progress(*columns, TimeRemainingColumn(), speeds, console=console)
        self._task = self._bars.add_task("prompts", total=tally.num_asked, speeds="")
        self._tally = tally
        self._clock = clock
        self._began = clock()

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.show()
        self._bars.stop()

    def show(self) -> None:
        tally, seconds = self._tally, max(1e-3, self._clock() - self._began)
        read, written = tally.prompt_tokens / seconds, tally.generated_tokens / seconds
        self._bars.update(self._task, completed=tally.num_done, speeds=f"tok/s: {read:,.0f} in, {written:,.0f} out")


def bar_of(tally: Tally, wanted: bool | None) -> Bar | None:
    """wanted: None, for one where somebody sees it and there is more than one prompt."""
    if wanted is False:
        return None
    console = Console(stderr=True)
    return Bar(tally, console) if wanted or (console.is_terminal and tally.num_asked > 1) else None
