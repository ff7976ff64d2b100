"""`headrace top`: what it draws at any size, and what it says where there is nothing to draw."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from gateway.cli import app
from gateway.dashboard.reader import FeedError, read
from gateway.dashboard.terminal import ENDED, drawing, sparkline, top
from gateway.dashboard.types import BlocksView, EndedView, EngineView, Event, Lately, QueueView, RowView


def event(num_rows: int = 3, num_waiting: int = 2, **changes: object) -> Event:
    row = RowView("req-0123456789abcdef", 0, "chat", 0, "decode", 100, 16, 110, 10, 64, 7, 0, 0, 2.5)
    queued = QueueView("[bold]red", 0, "chat", 50, 0, 0, False, 1.0, 12.5)
    engine = EngineView(
        *("0", True, "cpu (2 threads)", 8),
        running=num_rows,
        waiting=num_waiting,
        rows=[row] * num_rows,
        queue=[queued] * num_waiting,
        blocks=BlocksView(100, 30, 20, 1, 16, [(30, 1, 0), (20, 0, 1), (50, 0, 0)]),
    )
    lately = Lately(1234.5, 88.0, 120.0, 1500.0, 8.25, 20.0)
    ended = [EndedView("req-old", "chat", "stop", 9, 0, 30, 100.0, 812.4, 3.0)]
    made = Event(1.0, "0.1.0", "toy", num_rows + num_waiting, num_rows, lately, [engine], ended)
    return msgspec.structs.replace(made, **changes)


def drawn(shown: Event, width: int, height: int | None = None) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(drawing(shown, [1.0, 2.0], width, height))
    return out.getvalue().splitlines()


def test_everything_is_there() -> None:
    text = "\n".join(drawn(event(), 120))
    for part in ("toy", "1,234 tok/s", "TTFT 120 ms, p99 1.50 s", "3 of 8 rows, 2 wait", "30 of 100 blocks held"):
        assert part in text
    assert "decode" in text and "10/64" in text and "12 s" in text and "req-old" in text and "812 ms" in text
    assert "[bold]red" in text  # a client's name for its request, which is no markup


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [4, 8, 24])
def test_it_is_no_larger_than_the_terminal(width: int, height: int) -> None:
    lines = drawn(event(num_rows=50, num_waiting=50), width, height)
    assert len(lines) <= height and max(map(len, lines)) <= width


def test_an_engine_that_is_down() -> None:
    down = EngineView("0", up=False, device="", max_rows=0)
    assert any("engine 0 is down" in line for line in drawn(event(engines=[down]), 80))


def test_sparklines_fit_and_scale() -> None:
    assert sparkline([0.0, 5.0, 10.0], 80) == "▁▅█" and sparkline([1.0, 0.0, 2.0], 2) == "▁█"
    assert sparkline([], 10) == "" and sparkline([1.0], 0) == "" and sparkline([0.0], 3) == "▁"


def test_once_waits_for_figures_and_prints_one() -> None:
    out = StringIO()
    events = iter([event(lately=Lately()), event(model="second"), event(model="third")])
    top(events, Console(file=out, width=100), once=True)
    assert "second" in out.getvalue() and "third" not in out.getvalue()


def test_a_live_view_ends_with_the_stream() -> None:
    out = StringIO()
    with pytest.raises(FeedError, match=ENDED):
        top([event(), event(num_rows=1)], Console(file=out, width=100, height=30, force_terminal=True), once=False)
    assert "1 of 8 rows" in out.getvalue()


def test_ctrl_c_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(url: str, key: str) -> Iterator[Event]:
        yield event(lately=Lately())
        raise KeyboardInterrupt

    monkeypatch.setattr("gateway.dashboard.reader.read", interrupted)
    assert CliRunner().invoke(app, ["top"]).exit_code == 0


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, b'{"error": {"message": "This server asks for an API key."}}', "This server asks for an API key."),
        (404, b"<html>", "answers 404 Not Found"),
        (200, b"data: {}\n\n", "does not answer as headrace does"),
        (200, b": ping\n\n", ENDED),
    ],
)
def test_what_is_wrong_is_said_in_a_line(status: int, body: bytes, told: str) -> None:
    with answering(status, body) as url:
        result = CliRunner().invoke(app, ["top", "--once", "--url", url])
    assert result.exit_code == 1 and told in result.output
    assert result.output.startswith("headrace: ") and result.output.count("\n") == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://[::1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(FeedError, match=r"^--url: "):
        next(read(url, ""))


def test_events_are_read_as_they_were_written() -> None:
    body = b": ping\n\ndata: " + msgspec.json.encode(event()) + b"\n\n"
    with answering(200, body) as url:
        assert list(read(url, "sk-key")) == [event()]
