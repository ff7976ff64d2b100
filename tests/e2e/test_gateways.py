"""Several gateways on one port, as clients and operators see them: one server."""

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, eventually, processes, serving

NUM = 3
PROMPT = "The sun rises in the"


@pytest.fixture(scope="module")
def several(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("several"), "--gateways", str(NUM)) as running:
        running.metrics_when(lambda seen: seen["gateways"] == NUM, "all serve")
        yield running


def commands(server: RunningServer) -> dict[int, str]:
    """Of its children."""
    children = [pid for pid, parent in processes().items() if parent == server.process.pid]
    return {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in children}


def siblings(server: RunningServer) -> list[int]:
    return [pid for pid, command in commands(server).items() if "gateway.siblings" in command]


def engine(server: RunningServer) -> int:
    (pid,) = [pid for pid, command in commands(server).items() if "-m engine" in command]
    return pid


def completed(server: RunningServer, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    """On a connection of its own, which the system gives to some gateway."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4, "temperature": 0, **fields}
    return httpx.post(f"{server.api}/completions", json=body, headers=headers, timeout=PATIENCE_S)


def test_one_page_counts_what_all_have_done(several: RunningServer) -> None:
    before, draw = several.metrics(), random.Random(4)
    kinds = [draw.choice(["whole", "stream", "two", "wrong"]) for _ in range(60)]

    def ask(kind: str) -> str:
        fields = {"stream": {"stream": True}, "two": {"n": 2}, "wrong": {"max_tokens": 0.5}}.get(kind, {})
        answer = completed(several, ignore_eos=True, **fields)
        assert answer.status_code == (400 if kind == "wrong" else 200), answer.text
        return "invalid" if kind == "wrong" else "length"

    with ThreadPoolExecutor(8) as threads:
        outcomes = Counter(threads.map(ask, kinds))
    after = several.metrics()
    grown = {name: after[name] - before[name] for name in after}
    for outcome in ("invalid", "length"):
        assert grown[f"requests_total{{endpoint=completions,outcome={outcome}}}"] == outcomes[outcome]
    assert grown["generation_tokens_total"] == 4 * (outcomes["length"] + kinds.count("two"))
    assert grown["ttft_seconds_count"] == outcomes["length"]
    used = [after[f"process_cpu_seconds_total{{gateway={number}}}"] for number in range(NUM)]
    assert all(seconds > 0 for seconds in used)


def test_what_one_remembers_all_find(several: RunningServer) -> None:
    for number in range(6):
        assert completed(several, {"x-request-id": f"remembered-{number}"}).status_code == 200
    for number in range(6):
        told = several.get(f"/v1/requests/remembered-{number}/timeline").raise_for_status().json()
        assert (told["endpoint"], told["generated_tokens"]) == ("completions", 4)
    assert several.get("/v1/requests/nobody/timeline").status_code == 404
    previous = None
    for _ in range(4):
        body = {"input": "And then?", "max_output_tokens": 4, "previous_response_id": previous}
        answer = several.post("/v1/responses", body).raise_for_status().json()
        assert answer["previous_response_id"] == previous
        previous = answer["id"]
    assert several.get(f"/v1/responses/{previous}").json()["id"] == previous


def test_the_live_page_shows_what_all_of_them_do(several: RunningServer) -> None:
    names = {f"shown-{number}" for number in range(6)}

    def ask(name: str) -> int:
        return completed(several, {"x-request-id": name}, max_tokens=200, ignore_eos=True, stream=True).status_code

    def shown() -> bool:
        event = next(events)
        rows = {row["id"] for row in event["engines"][0]["rows"]}
        return rows == names and event["requests"] == event["streams"] == len(names)

    with (
        ThreadPoolExecutor(len(names)) as threads,
        httpx.stream("GET", f"{several.url}/dashboard/events", timeout=PATIENCE_S) as page,
    ):
        events = (json.loads(line.removeprefix("data: ")) for line in page.iter_lines() if line.startswith("data: "))
        asked = [threads.submit(ask, name) for name in sorted(names)]
        eventually(shown, "each row has its name")
        assert [each.result() for each in asked] == [200] * len(names)
        eventually(lambda: {each["id"] for each in next(events)["ended"]} >= names, "all have ended")


def test_one_that_is_killed_is_started_again_and_nothing_is_counted_back(several: RunningServer) -> None:
    wanted = several.greedy(PROMPT)
    for _ in range(12):
        completed(several)
    before = several.metrics()  # which tells the first gateway how all stand
    victim = siblings(several)[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in siblings(several), "it is gone")
    seen = several.metrics_when(
        lambda seen: seen["gateway_restarts_total"] == 1 and seen["gateways"] == NUM, "it is back"
    )
    name = "requests_total{endpoint=completions,outcome=length}"
    assert seen[name] == before[name]
    assert [several.greedy(PROMPT) for _ in range(8)] == [wanted] * 8
    assert several.metrics()["requests_total{endpoint=completions,outcome=length}"] == before[name] + 8


def test_a_new_engine_is_found_by_all(several: RunningServer) -> None:
    wanted = several.greedy(PROMPT)
    os.kill(engine(several), signal.SIGKILL)
    several.metrics_when(lambda seen: seen["engine_restarts_total"] == 1 and seen["engine_up"] == 1, "it is back")
    eventually(lambda: all(completed(several).status_code == 200 for _ in range(8)), "all gateways use it")
    assert several.greedy(PROMPT) == wanted


def test_limits_hold_over_all_and_a_drain_waits_for_all(gguf_path: Path, tmp_path: Path) -> None:
    most = 9
    with serving(
        tmp_path, "--gateways", str(NUM), "--limit-concurrency", str(most), "--drain-timeout", "200"
    ) as server:
        body = {"model": MODEL, "prompt": "Hi", "max_tokens": 120, "temperature": 0, "stream": True, "ignore_eos": True}

        def stream(number: int) -> str:
            return httpx.post(f"{server.api}/completions", json=body, timeout=PATIENCE_S).text

        children = list(commands(server))
        with ThreadPoolExecutor(most) as threads:
            answers = [threads.submit(stream, number) for number in range(most)]
            server.metrics_when(lambda seen: seen["streams_open"] == most, "all are under way")
            # Each gateway has some of them, and hears of the others within a moment.
            eventually(lambda: all(completed(server).status_code == 429 for _ in range(6)), "none lets one more in")
            server.send(signal.SIGTERM)
            ends = [answer.result().rstrip().endswith("data: [DONE]") for answer in answers]
        assert ends == [True] * most
        assert server.exit_code() == 0
        assert not set(children) & set(processes())
        assert "Traceback" not in server.log


def test_no_sibling_outlives_the_first(several: RunningServer) -> None:
    """The last of this module: its server is gone."""
    children = list(commands(several))
    assert len(children) == NUM
    several.send(signal.SIGKILL)
    several.exit_code()
    eventually(lambda: not set(children) & set(processes()), "all are gone")
