"""The feed in a terminal, as large as that is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.dashboard.reader import FeedError
from gateway.dashboard.types import EndedView, EngineView, Event, QueueView, RowView

BARS = "▁▂▃▄▅▆▇█"
MAX_HISTORY = 240
NARROW = 80  # columns; with fewer, columns that matter less are left out
SHORT_ID = 16
ENDED = "the server has ended the stream"
NOTHING = "–"
LEFT = frozenset({"request", "phase", "outcome", "endpoint"})  # titles of columns that are words


def top(events: Iterable[Event], console: Console, once: bool) -> None:
    """Raises FeedError, at the latest when the events end."""
    history: deque[float] = deque(maxlen=MAX_HISTORY)
    if once or not console.is_terminal:
        console.print(drawing(with_figures(events), history, console.width, None))
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        for event in events:
            history.append(event.lately.tokens_per_s or 0.0)
            live.update(drawing(event, history, console.width, console.height), refresh=True)
    raise FeedError(ENDED)


def with_figures(events: Iterable[Event]) -> Event:
    """The first that has some: they need two looks. Raises FeedError where there is no event."""
    event = None
    for event in events:
        if event.lately.tokens_per_s is not None:
            break
    if event is None:
        raise FeedError(ENDED)
    return event


def drawing(event: Event, history: Sequence[float], width: int, height: int | None) -> RenderableType:
    """height: in lines; None: as many as it takes."""
    parts: list[RenderableType] = [head(event), figures(event, history, width)]
    parts += [line for engine in event.engines for line in engine_lines(engine, width)]
    left = 1 << 20 if height is None else height - len(parts)
    rows = [row for engine in event.engines for row in engine.rows]
    queue = [queued for engine in event.engines for queued in engine.queue]
    wide = width >= NARROW
    sections = (
        ("running", [running(row, wide) for row in rows]),
        ("waiting", [waiting(queued, wide) for queued in queue]),
        ("ended", [ended(each, wide) for each in event.ended]),
    )
    for title, lines in sections:
        room = min(len(lines), left - 2)  # a blank line and the titles
        if room > 0:
            parts += [Text(), table(title, lines[:room])]
            left -= room + 2
    return Group(*parts)


Line = dict[str, str]  # by the titles of columns; the first is the section's


def table(title: str, lines: Sequence[Line]) -> Table:
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in lines[0]:
        is_first = column == "request"
        made.add_column(
            title if is_first else column,
            justify="left" if column in LEFT else "right",
            no_wrap=True,
            overflow="ellipsis",
            max_width=SHORT_ID if is_first else None,
        )
    for line in lines:
        made.add_row(*(Text(text) for text in line.values()))
    return made


def running(row: RowView, wide: bool) -> Line:
    done = (row.computed_tokens, row.prompt_tokens)
    if row.phase == "decode":
        done = (row.generated_tokens, row.max_tokens)
    line = {
        "request": name_of(row),
        "phase": row.phase,
        "done": f"{done[0]}/{done[1]}",
        "age": seconds(row.age_s),
    }
    more = {
        "prompt": str(row.prompt_tokens),
        "cached": str(row.cached_tokens),
        "blocks": str(row.blocks),
        "endpoint": row.endpoint or NOTHING,
    }
    return {**line, **more} if wide else line


def waiting(queued: QueueView, wide: bool) -> Line:
    will_wait = "for a choice" if queued.waits_for_choice else seconds(queued.predicted_s)
    line = {
        "request": name_of(queued),
        "tokens": str(queued.tokens),
        "waited": seconds(queued.waited_s),
        "will wait": will_wait,
    }
    return {**line, "endpoint": queued.endpoint or NOTHING} if wide else line


def ended(each: EndedView, wide: bool) -> Line:
    line = {
        "request": each.id,
        "outcome": each.outcome or NOTHING,
        "tokens": str(each.generated_tokens),
        "total": ms(each.total_ms),
    }
    more = {"first token": ms(each.ttft_ms), "prompt": str(each.prompt_tokens), "endpoint": each.endpoint}
    return {**line, **more} if wide else line


def name_of(view: RowView | QueueView) -> str:
    return view.id or NOTHING


def head(event: Event) -> Text:
    text = Text.assemble(("headrace", "bold"), f" {event.version}  {event.model}")
    text.append(f"  {event.requests} requests, {event.streams} streams", "dim")
    return one_line(text)


def figures(event: Event, history: Sequence[float], width: int) -> Text:
    lately = event.lately
    text = Text.assemble(
        (f"{rate(lately.tokens_per_s)} tok/s", "bold"),
        f" (prompts {rate(lately.prompt_tokens_per_s)})",
        f"  TTFT {ms(lately.ttft_p50_ms)}, p99 {ms(lately.ttft_p99_ms)}",
        f"  ITL {ms(lately.itl_p50_ms)}, p99 {ms(lately.itl_p99_ms)}  ",
    )
    text.append(sparkline(history, width - text.cell_len), "cyan")
    return one_line(text)


def engine_lines(engine: EngineView, width: int) -> list[Text]:
    if not engine.up:
        gone = ("drained", "bold") if engine.draining else ("down", "bold red")
        return [Text(f"engine {engine.name} is {gone[0]}", gone[1])]
    counts = f"engine {engine.name}: {engine.device}  {engine.running} of {engine.max_rows} rows, {engine.waiting} wait"
    if engine.draining:
        counts += ", takes no new work"
    if engine.compiling:
        counts += f", {engine.compiling} for grammars"
    lines = [one_line(Text(f"{counts}, {engine.preemptions} preemptions"))]
    blocks = engine.blocks
    if blocks is not None and blocks.total:
        told = f" {blocks.used} of {blocks.total} blocks held, {blocks.cached} cached"
        size = max(10, min(40, width - len(told)))
        held = -(-size * blocks.used // blocks.total)
        cached = min(size - held, -(-size * blocks.cached // blocks.total))
        bar = Text.assemble(("█" * held, "cyan"), ("▒" * cached, "yellow"), ("░" * (size - held - cached), "dim"), told)
        lines.append(one_line(bar))
    return lines


def one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def sparkline(values: Sequence[float], width: int) -> str:
    """The newest that fit."""
    shown = list(values)[-width:] if width > 0 else []
    top = max(shown, default=0.0) or 1.0
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in shown)


def rate(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def ms(value: float | None) -> str:
    if value is None:
        return NOTHING
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def seconds(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
