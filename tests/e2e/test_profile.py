"""Profiles of a real engine on the CPU: what is in them, and that requests do not feel them."""

import gzip
import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, eventually, serving

PROMPT = "Aardvarks and zeppelins are"
FAR = 200  # steps that a test does not wait for


@contextmanager
def serving_from(where: Path, *flags: str) -> Iterator[tuple[RunningServer, Path]]:
    """And the folder of its temporary files: of a short name, for there are sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="hp", dir="/tmp"))
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(folder))
            server = stack.enter_context(serving(where, "--debug-profile", *flags))
        yield server, folder
    assert files(folder) == []
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def started(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Path]]:
    with serving_from(tmp_path_factory.mktemp("profiled")) as running:
        yield running


@pytest.fixture
def profiled(started: tuple[RunningServer, Path]) -> RunningServer:
    return started[0]


@pytest.fixture
def folder(started: tuple[RunningServer, Path]) -> Path:
    return started[1]


def profile(server: RunningServer, **query: float) -> httpx.Response:
    return httpx.post(f"{server.url}/debug/profile", params=query, timeout=PATIENCE_S)


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.glob("headrace-*/*") if not path.is_symlink())


@contextmanager
def busy(server: RunningServer) -> Iterator[None]:
    """A stream runs meanwhile."""
    body: dict[str, Any] = {"model": MODEL, "prompt": "Hi", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.api}/completions", json=body, timeout=PATIENCE_S) as stream:
        chunks = stream.iter_bytes()  # which closes the stream once it is let go of
        next(chunks)
        yield


def test_the_trace_has_the_steps_and_nothing_of_the_users(profiled: RunningServer, folder: Path) -> None:
    calm = profiled.greedy(PROMPT, 40)
    with ThreadPoolExecutor() as pool, busy(profiled):
        text = pool.submit(profiled.greedy, PROMPT, 40)
        answer = profile(profiled, steps=7)
        assert text.result() == calm
    assert (answer.status_code, answer.headers["x-headrace-steps"]) == (200, "7")
    assert (answer.headers["content-type"], answer.headers["content-encoding"]) == ("application/json", "gzip")
    events = answer.json()["traceEvents"]
    spans = [event for event in events if event.get("ph") == "X"]
    steps = {event["name"]: event for event in spans if event["name"].startswith("step ")}
    assert set(steps) == {f"step {number}" for number in range(1, 8)}
    first = steps["step 2"]
    inside = [
        event["name"]
        for event in spans
        if first["ts"] <= event["ts"] <= first["ts"] + first["dur"] and event["tid"] == first["tid"]
    ]
    assert len([name for name in inside if name.startswith("aten::")]) > 100
    given = {key for event in events for key in event.get("args", {})}
    assert not {key for key in given if "Concrete" in key or "Input" in key}
    assert PROMPT.split()[0] not in answer.text and calm not in answer.text
    assert files(folder) == [".sock"]


def test_half_of_what_was_asked_for_when_the_time_is_up(profiled: RunningServer) -> None:
    with busy(profiled):
        answer = profile(profiled, steps=FAR, timeout_s=0.3)
    assert answer.status_code == 200 and 1 <= int(answer.headers["x-headrace-steps"]) < FAR
    assert answer.json()["traceEvents"]


def test_an_engine_with_nothing_to_do(profiled: RunningServer, folder: Path) -> None:
    profiled.metrics_when_idle()
    answer = profile(profiled, timeout_s=0.1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "no_steps")
    assert files(folder) == [".sock"]


def test_a_second_one_waits_for_nothing_and_who_leaves_gives_the_place_up(
    profiled: RunningServer, folder: Path
) -> None:
    profiled.metrics_when_idle()
    with ThreadPoolExecutor() as pool, httpx.Client(timeout=0.5) as impatient:
        first = pool.submit(impatient.post, f"{profiled.url}/debug/profile?timeout_s=600")
        eventually(lambda: ".sock" in files(folder) and len(files(folder)) == 2, "the first is under way")
        second = profile(profiled)
        assert (second.status_code, second.json()["error"]["code"]) == (409, "profile_under_way")
        with pytest.raises(httpx.ReadTimeout):
            first.result()
    eventually(lambda: files(folder) == [".sock"], "the first is gone")
    with busy(profiled):
        assert profile(profiled, steps=1).status_code == 200


def test_out_of_bounds(profiled: RunningServer) -> None:
    answer = profile(profiled, steps=201)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "steps")


def test_many_in_a_row(profiled: RunningServer) -> None:
    with busy(profiled):
        raw = [profile(profiled, steps=2) for _ in range(5)]
    assert [answer.headers["x-headrace-steps"] for answer in raw] == ["2"] * 5


def test_without_the_switch_there_is_none(server: RunningServer) -> None:
    answer = profile(server)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "profiling_off")


def test_a_server_that_ends_meanwhile(gguf_path: Path, tmp_path: Path) -> None:
    """One with a key."""
    flags = ("--drain-timeout", "0.5", "--api-key", "sk-one")
    with serving_from(tmp_path, *flags) as (server, folder), ThreadPoolExecutor() as pool:
        assert profile(server).status_code == 401
        url, keyed = f"{server.url}/debug/profile?timeout_s=600", {"authorization": "Bearer sk-one"}
        asked = pool.submit(httpx.post, url, headers=keyed, timeout=PATIENCE_S)
        eventually(lambda: len(files(folder)) == 2, "it is under way")
        server.send(signal.SIGTERM)
        answer = asked.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert server.exit_code() == 0
        assert files(folder) == []
    assert "Traceback" not in server.log


def test_the_answer_is_a_gzip_file_as_it_comes(profiled: RunningServer, tmp_path: Path) -> None:
    with busy(profiled), httpx.stream("POST", f"{profiled.url}/debug/profile?steps=1", timeout=PATIENCE_S) as answer:
        (tmp_path / "trace.json.gz").write_bytes(b"".join(answer.iter_raw()))
    with gzip.open(tmp_path / "trace.json.gz") as file:
        assert "traceEvents" in json.load(file)
