"""The whole command: in this process against a toy, and as a process against the real gateway, whose engine computes
nothing."""

import asyncio
import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.flags import Flags
from bench.options import parse
from bench.report import Report, remarks
from bench.run import NothingAnswered, run
from bench.server import ServerError
from benchmarks.gateway_cost import gateway
from tests.bench.toy import Exchange, Toy, hang, toy, whole
from tests.fixtures.engines import ROOT

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def url(gguf_path: Path) -> Iterator[str]:
    with gateway(step_ms=1) as (_, port):
        yield f"http://127.0.0.1:{port}"


async def report(*urls: str, **flags: Any) -> Report:
    given = Flags(urls[0], requests=6, concurrency="2", **({"compare": urls[1]} if urls[1:] else {}), **flags)
    return await run(parse(given), ["x"], asyncio.Event())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway", "bench", *arguments]


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


def last_line(output: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(output.splitlines()[-1])
    return told


# against a toy


async def test_warm_up_requests_do_not_count() -> None:
    async with toy() as server:
        (level,) = (await report(server.url, warmup=3, input_len="4")).levels
    assert (level.figures[0].requests, len(server.asked)) == (6, 9)
    assert level.figures[0].prompt_tokens == 24


async def test_failures_are_in_the_table_by_name() -> None:
    async def some(server: Toy, exchange: Exchange) -> None:
        if exchange.number % 2:
            await exchange.answer(429, {"error": {"message": "Come later.", "code": "queue_full"}})
        else:
            await whole(server, exchange)

    async with toy(some) as server:
        made = await report(server.url, warmup=0)
    assert (made.levels[0].figures[0].answered, made.levels[0].figures[0].requests) == (3, 6)
    out = io.StringIO()
    made.print(Console(file=out, width=160))
    assert "2 streams: 3 of 6 failed: HTTP 429 queue_full (Come later.)" in out.getvalue()
    assert "3 / 3" in out.getvalue()


async def test_short_answers_and_missing_usage_are_told() -> None:
    async def short(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.token()
        await exchange.event("[DONE]")
        await exchange.write(b"0\r\n\r\n")

    async with toy(short) as server:
        (level,) = (await report(server.url)).levels
    assert remarks(level.figures[0])[:2] == [
        "6 answers had fewer tokens than were asked for",
        "6 answers came without usage: each event counts as one token",
    ]


async def test_two_servers_take_turns_and_the_order_changes() -> None:
    turns = list[str]()

    def named(name: str) -> Any:
        async def behave(server: Toy, exchange: Exchange) -> None:
            turns.append(name)
            await whole(server, exchange)

        return behave

    async with toy(named("a")) as one, toy(named("b")) as other:
        made = await report(one.url, other.url, rounds=4, warmup=0)
    assert "".join(turns) == "".join(name * 6 for name in "abbaabba")
    assert [figures.answered for figures in made.levels[0].figures] == [24, 24]
    told = made.as_json()
    assert [server["url"] for server in told["servers"]] == [one.url, other.url]
    assert {ratio["name"] for ratio in told["compared"][0]["ratios"]} >= {"output_tok_per_s", "ttft_p50", "e2e_p99"}


async def test_a_warm_up_without_an_answer_ends_the_run_at_once() -> None:
    async def refuse(server: Toy, exchange: Exchange) -> None:
        await exchange.answer(404, {"error": {"message": "No such model.", "code": "model_not_found"}})

    async with toy(refuse) as server:
        with pytest.raises(
            NothingAnswered, match=r"did not answer the warm-up: HTTP 404 model_not_found: No such model\."
        ):
            await report(server.url)
    assert len(server.asked) == 1


async def test_a_run_without_an_answer_is_none() -> None:
    async with toy(hang) as server:
        with pytest.raises(NothingAnswered, match=r"no request was answered: timeout after 0\.05 s"):
            await report(server.url, warmup=0, timeout=0.05)


async def test_a_server_that_names_no_model() -> None:
    async with toy() as server:
        with pytest.raises(ServerError, match="GET /none/v1/models: HTTP 404"):
            await report(server.url.replace("/v1", "/none/v1"))


async def test_without_tokenize_lengths_are_not_said_to_be_exact() -> None:
    async with toy() as server:
        assert not (await report(server.url)).servers[0].has_exact_words


# against the gateway


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_tokens_are_exactly_those_that_were_asked_for(url: str, endpoint: str) -> None:
    flags = ["--concurrency", "1,4", "--requests", "8", "--input-len", "50", "--output-len", "20"]
    done = ended(url, *flags, "--endpoint", endpoint, "--shared-prefix", "30")
    assert done.returncode == 0, done.stderr
    told = last_line(done.stdout)
    (server,) = told["servers"]
    assert server["model"] == "SmolLM2-135M-Instruct" and server["exact_input_len"] and server["version"]
    for level in server["levels"]:
        assert (level["answered"], level["output_tokens"], level["short_answers"]) == (8, 160, 0)
        template = level["prompt_tokens"] / 8 - 80
        assert template == (0 if endpoint == "completions" else 14)
    assert [level["value"] for level in server["levels"]] == [1, 4]
    assert "TTFT p99, ms" in done.stdout and "1 stream " in done.stdout


def test_open_loops_and_traces_with_files(url: str, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(
        "".join(f'{{"at": {at / 50}, "input_len": {at + 1}, "output_len": {at + 2}}}\n' for at in range(9))
    )
    done = ended(
        url,
        "--trace",
        str(trace),
        "--speed",
        "1,4",
        "--plot",
        str(tmp_path / "p.html"),
        "--output",
        str(tmp_path / "o"),
    )
    assert done.returncode == 0, done.stderr
    told = last_line(done.stdout)
    for level in told["servers"][0]["levels"]:
        assert (level["prompt_tokens"], level["output_tokens"]) == (sum(range(1, 10)), sum(range(2, 11)))
        assert level["late_ms"]["p50"] > 0
    assert json.loads((tmp_path / "o").read_text()) == told
    assert (tmp_path / "p.html").read_text().count("<svg") == 4

    done = ended(
        url, "--rate", "100,200", "--requests", "20", "--slo", "ttft=60000", "--output-len", "2:8", "--seed", "7"
    )
    (server,) = last_line(done.stdout)["servers"]
    assert [level["answered"] for level in server["levels"]] == [20, 20]
    assert all(level["good_requests_per_s"] == level["requests_per_s"] for level in server["levels"])


def test_one_server_compared_with_itself(url: str) -> None:
    done = ended(url, "--compare", url, "--rounds", "2", "--concurrency", "4", "--requests", "8", "--output-len", "16")
    assert done.returncode == 0, done.stderr
    told = last_line(done.stdout)
    assert [server["levels"][0]["output_tokens"] for server in told["servers"]] == [256, 256]
    assert [server["levels"][0]["cached_tokens"] for server in told["servers"]] == [0, 0]
    assert all(each["low"] <= each["ratio"] <= each["high"] for each in told["compared"][0]["ratios"])
    assert "B over A" in done.stdout


def test_a_wrong_flag_is_one_line() -> None:
    done = ended("--concurrency", "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "headrace: --concurrency: a number, not 'none'\n"


def test_nobody_there_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = ended(f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "headrace: GET /v1/models: connection refused\n"


async def test_ctrl_c_prints_what_there_is() -> None:
    async def ten(server: Toy, exchange: Exchange) -> None:
        await (whole if exchange.number <= 10 else hang)(server, exchange)

    async with toy(ten) as server:
        flags = [server.url, "--concurrency", "2,4", "--requests", "50", "--warmup", "0"]
        process = await asyncio.create_subprocess_exec(*command(*flags), cwd=ROOT, stdout=subprocess.PIPE)
        try:
            await server.until(12)
            process.send_signal(signal.SIGINT)
            out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert process.returncode == 130
    (level,) = last_line(out.decode())["servers"][0]["levels"]
    assert (level["answered"], level["cut_off"]) == (10, 2)
    assert "2 were under way when the run was stopped" in out.decode()
