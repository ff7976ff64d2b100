"""LLM and AsyncLLM on the real model, beside the real server: the same answers."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import LLM, AsyncLLM, LLMError
from gateway.engines.socket import EngineFailed
from gateway.offline.results import Result
from tests.fixtures.server import MODEL, PATIENCE_S, ROOT, RunningServer, environment, eventually, processes

PROMPTS = ["The capital of France is", "One, two, three,", "The sun rises in the", "Water boils at"]
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
COLOURS = {
    "type": "json_schema",
    "json_schema": {
        "name": "colour",
        "schema": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "green"]}, "warm": {"type": "boolean"}},
            "required": ["colour", "warm"],
            "additionalProperties": False,
        },
    },
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SMALL: dict[str, Any] = {"dtype": "float32", "threads": 1, "max_model_len": 2048, "kv_cache_memory": "512MiB"}
MAX_WAITING = 24


@pytest.fixture(scope="module")
def llm(gguf_path: Path) -> Iterator[LLM]:
    with LLM(**SMALL, max_waiting=MAX_WAITING) as made:
        yield made


def completion(server: RunningServer, **body: Any) -> dict[str, Any]:
    told = server.post("/v1/completions", {"return_token_ids": True, **body}).raise_for_status()
    answer: dict[str, Any] = told.json()
    return answer


def chat(server: RunningServer, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = server.post("/v1/chat/completions", body).raise_for_status().json()
    return answer


def is_idle(llm: LLM) -> bool:
    stats = llm._engine.session._services.engine.stats
    return stats is not None and (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)


# as the server


def test_greedy_ids_are_the_servers_and_in_order(llm: LLM, server: RunningServer) -> None:
    results = llm.generate(PROMPTS, max_tokens=10, temperature=0)
    answer = completion(server, prompt=PROMPTS, max_tokens=10, temperature=0)
    assert [result.token_ids for result in results] == [choice["token_ids"] for choice in answer["choices"]]
    assert [result.text for result in results] == [choice["text"] for choice in answer["choices"]]
    assert [result.prompt for result in results] == PROMPTS
    assert [result.prompt_token_ids for result in results] == [each["prompt_token_ids"] for each in answer["choices"]]
    assert {result.finish_reason for result in results} == {"length"}
    assert sum(result.usage.completion_tokens for result in results) == answer["usage"]["completion_tokens"]


def test_token_ids_are_prompts_too(llm: LLM) -> None:
    ids = [llm.encode(prompt) for prompt in PROMPTS[:2]]
    texts = [result.text for result in llm.generate(PROMPTS[:2], max_tokens=6, temperature=0)]
    assert [result.text for result in llm.generate(ids, max_tokens=6, temperature=0)] == texts
    alone = llm.generate(ids[0], max_tokens=6, temperature=0)
    assert alone.text == texts[0] and alone.prompt is None
    assert llm.decode(ids[0] + alone.token_ids) == PROMPTS[0] + texts[0]
    assert llm.model_name == MODEL


def test_n_and_seed(llm: LLM, server: RunningServer) -> None:
    asked: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0, "top_p": 0.95, "top_k": 50, "seed": 7, "n": 3}
    result = llm.generate(PROMPTS[0], **asked)
    answer = completion(server, prompt=PROMPTS[0], **asked)
    assert [output.token_ids for output in result.outputs] == [choice["token_ids"] for choice in answer["choices"]]
    assert [output.index for output in result.outputs] == [0, 1, 2]
    assert len({output.text for output in result.outputs}) > 1


def test_a_drawn_seed_is_told_and_gives_the_same_again(llm: LLM) -> None:
    first = llm.generate(PROMPTS[0], max_tokens=8, temperature=1.0)
    assert llm.generate(PROMPTS[0], max_tokens=8, temperature=1.0, seed=first.seed).token_ids == first.token_ids


def test_stop_strings(llm: LLM) -> None:
    result = llm.generate("One, two, three,", max_tokens=20, temperature=0, stop=[" six", " nine"])
    assert (result.finish_reason, result.outputs[0].stop_reason) == ("stop", " six")
    assert result.text == " four, five,"


def test_ignore_eos(llm: LLM) -> None:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    ended = llm.chat(MESSAGES, **asked)
    on = llm.chat(MESSAGES, **asked, ignore_eos=True)
    assert (ended.finish_reason, on.finish_reason) == ("stop", "length")
    assert len(ended.token_ids) < 12 == len(on.token_ids) and on.token_ids[: len(ended.token_ids)] == ended.token_ids


def test_logprobs_are_the_servers(llm: LLM, server: RunningServer) -> None:
    result = llm.generate(PROMPTS[0], max_tokens=5, temperature=0, logprobs=2, prompt_logprobs=1)
    told = completion(server, prompt=PROMPTS[0], max_tokens=5, temperature=0, logprobs=2)["choices"][0]["logprobs"]
    assert result.logprobs is not None and result.prompt_logprobs is not None
    chosen = [place[token] for place, token in zip(result.logprobs, result.token_ids, strict=True)]
    assert [each.decoded_token for each in chosen] == told["tokens"]
    assert [each.logprob for each in chosen] == pytest.approx(told["token_logprobs"], abs=1e-4)
    assert {each.rank for each in chosen} == {1} and {len(place) for place in result.logprobs} == {2}
    assert result.outputs[0].cumulative_logprob == pytest.approx(sum(told["token_logprobs"]), abs=1e-3)
    first, *others = result.prompt_logprobs
    assert first is None
    scored = llm.generate(PROMPTS[0], max_tokens=0, prompt_logprobs=1)
    assert (scored.text, scored.token_ids, scored.prompt_logprobs) == ("", [], result.prompt_logprobs)
    assert all(token in place for place, token in zip(others, result.prompt_token_ids[1:], strict=True) if place)


def test_a_chat_is_the_servers(llm: LLM, server: RunningServer) -> None:
    result = llm.chat(MESSAGES, temperature=0, logprobs=1)
    answer = chat(server, messages=MESSAGES, temperature=0)
    assert result.text == answer["choices"][0]["message"]["content"] == ANSWER
    assert result.finish_reason == "stop"
    assert result.usage.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert result.logprobs is not None and len(result.logprobs) == result.usage.completion_tokens


def test_conversations_at_once_and_a_next_turn(llm: LLM, server: RunningServer) -> None:
    other = [{"role": "user", "content": "Name one colour."}]
    first, second = llm.chat([MESSAGES, other], temperature=0, max_tokens=20)
    assert first.text == ANSWER and second.text != ANSWER
    follow_up = [*other, second.message, {"role": "user", "content": "And another one?"}]
    as_text = [*other, {"role": "assistant", "content": second.text}, follow_up[-1]]
    result = llm.chat(follow_up, temperature=0, max_tokens=12)
    answer = chat(server, messages=as_text, temperature=0, max_tokens=12)
    assert result.text == answer["choices"][0]["message"]["content"]


def test_a_schema_is_kept(llm: LLM, server: RunningServer) -> None:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "response_format": COLOURS}
    result = llm.chat([{"role": "user", "content": "A colour, as JSON."}], **asked)
    answer = chat(server, messages=[{"role": "user", "content": "A colour, as JSON."}], **asked)
    assert result.text == answer["choices"][0]["message"]["content"]
    assert json.loads(result.text).keys() == {"colour", "warm"}


def test_tools_are_called(llm: LLM) -> None:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "parallel_tool_calls": False}
    result = llm.chat(MESSAGES, tools=[WEATHER], tool_choice="required", **asked)
    assert result.finish_reason == "tool_calls"
    (call,) = result.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    told = llm.chat(
        [*MESSAGES, result.message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny"}],
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=4,
    )
    assert told.usage.completion_tokens > 0


def test_timings_sum_to_the_whole(llm: LLM) -> None:
    timings = llm.generate(PROMPTS[0], max_tokens=4).timings
    assert sum(spent.ms for spent in timings.causes) == pytest.approx(timings.total_ms, abs=0.1)
    assert timings.ttft_ms is not None and 0 < timings.ttft_ms < timings.total_ms


# streams


@pytest.mark.parametrize("given", [PROMPTS[1], MESSAGES])
def test_pieces_of_a_stream_join_to_the_whole(llm: LLM, given: Any) -> None:
    whole = llm.chat(given, temperature=0, max_tokens=12) if given is MESSAGES else None
    whole = whole or llm.generate(given, temperature=0, max_tokens=12)
    stream = llm.stream(given, temperature=0, max_tokens=12)
    with pytest.raises(RuntimeError, match="not been read"):
        _ = stream.result
    pieces = list(stream)
    assert len(pieces) > 3 and "".join(pieces) == whole.text == stream.result.text
    assert stream.result.outputs == whole.outputs


def test_a_stream_that_is_left_takes_nothing_any_more(llm: LLM) -> None:
    for _ in llm.stream(PROMPTS[0], max_tokens=1500, ignore_eos=True):
        break
    eventually(lambda: is_idle(llm), "the engine is idle")
    with llm.stream(PROMPTS[0], max_tokens=1500, ignore_eos=True) as stream:
        next(stream)
    eventually(lambda: is_idle(llm), "the engine is idle")


# many, and errors


def test_three_hundred_prompts_at_once(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    """More than ten times of what the engine's queue takes."""
    prompts = [f"{number} is a number" for number in range(300)]
    results = llm.generate(prompts, max_tokens=1, temperature=0, progress=True)
    assert [result.prompt for result in results] == prompts
    assert {result.usage.completion_tokens for result in results} == {1}
    assert results[217].token_ids == llm.generate(prompts[217], max_tokens=1, temperature=0).token_ids
    bar = capfd.readouterr().err
    assert "300/300" in bar and re.search(r"tok/s: [\d,]+ in, [\d,]+ out", bar)


def test_nothing_is_printed_where_nobody_looks(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, max_tokens=1)
    assert capfd.readouterr() == ("", "")


def test_an_error_names_its_field_and_costs_the_others_nothing(llm: LLM) -> None:
    with pytest.raises(LLMError, match=r"^prompts\[1\]: .*maximum context length") as raised:
        llm.generate([PROMPTS[0], "far too long " * 2000, PROMPTS[1]], max_tokens=4, temperature=0)
    error = raised.value
    assert (error.param, error.code) == ("prompts[1]", "context_length_exceeded")
    first, failed, last = error.results
    assert isinstance(first, Result) and failed is error and isinstance(last, Result)
    assert [first.prompt, last.prompt] == PROMPTS[:2]


@pytest.mark.parametrize(
    ("sampling", "param", "message"),
    [
        ({"temperature": 9.0}, "temperature", "temperature"),
        ({"logprobs": 50}, "logprobs", "logprobs must be between 0 and 20"),
        ({"stop": 7}, "stop", "stop"),
        ({"temprature": 0.5}, "temprature", "Did you mean temperature"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "json_schema"),
    ],
)
def test_a_wrong_argument_is_named(llm: LLM, sampling: dict[str, Any], param: str, message: str) -> None:
    for ask in (lambda: llm.chat(MESSAGES, **sampling), lambda: list(llm.stream(MESSAGES, **sampling))):
        with pytest.raises(LLMError, match=message) as raised:
            ask()
        assert raised.value.param == param


def test_a_wrong_message_is_named(llm: LLM) -> None:
    with pytest.raises(LLMError) as raised:
        llm.chat([MESSAGES, [{"role": "nobody", "content": "Hello"}]], max_tokens=1)
    assert raised.value.param == "messages[1][0].role"


def test_an_engine_that_dies_is_followed_by_one_that_goes_on(llm: LLM) -> None:
    sampling: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
    calm = llm.generate(PROMPTS[0], **sampling).text
    pid = llm._engine.session._replicas.supervisors[0].pid
    assert pid is not None
    stream = llm.stream(PROMPTS[0], **sampling)
    begun = next(stream)
    os.killpg(pid, signal.SIGKILL)
    assert begun + "".join(stream) == calm
    assert llm.generate(PROMPTS[0], max_tokens=1, temperature=0).text == " Paris"


def test_an_engine_that_cannot_start_says_why() -> None:
    with pytest.raises(EngineFailed, match="cuda:99"):
        LLM(**{**SMALL, "device": "cuda:99"})


# with an event loop


async def test_async(server: RunningServer) -> None:
    async with AsyncLLM(**SMALL) as llm:
        many, one, answer, pieces = await asyncio.gather(
            llm.generate(PROMPTS, max_tokens=6, temperature=0),
            llm.generate(PROMPTS[0], max_tokens=6, temperature=0),
            llm.chat(MESSAGES, temperature=0),
            pieces_of(llm),
        )
        for _ in range(2):
            async for _ in llm.stream(PROMPTS[0], max_tokens=1500, ignore_eos=True):
                break
        left = asyncio.create_task(llm.generate(PROMPTS[0], max_tokens=1500, ignore_eos=True))
        await asyncio.sleep(0)
    with pytest.raises(LLMError):  # it has been closed under it
        await left
    with pytest.raises(LLMError, match="closed"):
        await llm.generate(PROMPTS)
    expected = completion(server, prompt=PROMPTS, max_tokens=6, temperature=0)["choices"]
    assert [result.token_ids for result in many] == [choice["token_ids"] for choice in expected]
    assert one.token_ids == many[0].token_ids
    assert answer.text == "".join(pieces) == ANSWER and len(pieces) > 3


async def pieces_of(llm: AsyncLLM) -> list[str]:
    stream = llm.stream(MESSAGES, temperature=0)
    pieces = [piece async for piece in stream]
    assert stream.result.finish_reason == "stop"
    return pieces


# the end of programs

INTERRUPTED = f"""
import os
from gateway import LLM, LLMError
llm = LLM(**{SMALL})
prompts = [f"Number {{i}}:" for i in range(50)]
print("ready", flush=True)
try:
    llm.generate(prompts, max_tokens=1500, ignore_eos=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(llm.generate("The capital of France is", max_tokens=1, temperature=0).text, flush=True)
llm.close()
try:
    llm.generate("Hello")
except LLMError as error:
    print(error.code, flush=True)
llm = LLM(**{SMALL})
print(llm.generate("The capital of France is", max_tokens=1, temperature=0).text, flush=True)
"""
STARTING = f"""
from gateway import LLM
print("starting", flush=True)
LLM(**{SMALL})
"""


class Program:
    def __init__(self, text: str, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", text],
            cwd=ROOT,
            env={**environment(), "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def engine(self) -> int:
        """Its process, as soon as there is one."""
        return eventually(self._children, "an engine runs")[0]

    def _children(self) -> list[int]:
        return [pid for pid, parent in processes().items() if parent == self.process.pid]

    def interrupt(self) -> None:
        os.kill(self.process.pid, signal.SIGINT)


def leaves_nothing(program: Program, *engines: int) -> None:
    eventually(lambda: processes().keys().isdisjoint(engines), "no engine is left")
    assert list(program.folder.iterdir()) == []


def test_ctrl_c_ends_a_call_and_programs_leave_no_process(gguf_path: Path, tmp_path: Path) -> None:
    """The first LLM is closed, the second one ends with the program."""
    program = Program(INTERRUPTED, tmp_path)
    assert program.line() == "ready\n"
    first = program.engine()
    program.interrupt()
    assert [program.line() for _ in range(3)] == ["interrupted\n", " Paris\n", "closed\n"]
    second = program.engine()
    said, errors = program.process.communicate(timeout=PATIENCE_S)
    assert (program.process.returncode, said, errors) == (0, " Paris\n", "")
    assert first != second
    leaves_nothing(program, first, second)


def test_ctrl_c_during_the_start(gguf_path: Path, tmp_path: Path) -> None:
    program = Program(STARTING, tmp_path)
    assert program.line() == "starting\n"
    engine = program.engine()
    program.interrupt()
    _, errors = program.process.communicate(timeout=PATIENCE_S)
    assert program.process.returncode != 0 and errors.rstrip().endswith("KeyboardInterrupt")
    leaves_nothing(program, engine)


def examples() -> list[str]:
    pages = (ROOT / "docs" / "offline.md", ROOT / "README.md")
    blocks = [block for page in pages for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)]
    return [block for block in blocks if "from gateway import" in block]


def test_there_are_examples_on_both_pages() -> None:
    assert len(examples()) == 3


@pytest.mark.parametrize("example", examples())
def test_examples_run(gguf_path: Path, example: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.strip()
