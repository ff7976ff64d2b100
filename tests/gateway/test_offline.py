"""What surrounds the calls of LLM: names, room, bars, over a fake engine."""

import asyncio
import gc
import io
import signal
import subprocess
import sys
import threading
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy
import pytest
from rich.console import Console

import gateway
from gateway.answers.reasoning import ReasoningFormat
from gateway.config import Config, ConfigError
from gateway.engines.client import EngineUnavailable
from gateway.http.exchange import Exchange
from gateway.model.served import ServedModel
from gateway.offline import start
from gateway.offline.asks import ChatSampling, PromptSampling, chat_asks, prompt_asks, stream_ask
from gateway.offline.errors import LLMError
from gateway.offline.progress import Bar, Tally, bar_of
from gateway.offline.results import Result
from gateway.offline.room import Room
from gateway.offline.session import Session, settings_of
from gateway.openai import ChatRequest, CompletionRequest
from gateway.requests.parse import field_names
from scheduler.protocol import Submit
from scheduler.types import Rejected
from tests.fixtures.fakes import DEADLINE_S, FakeEngine, Script, toy_model, toy_services

NOT_OFFERED = {"model", "stream", "stream_options", "return_token_ids", "include_timings"}
OF_COMPLETIONS = NOT_OFFERED | {"prompt", "echo", "best_of"}
OF_CHATS = NOT_OFFERED | {"messages", "max_completion_tokens", "top_logprobs", "include_reasoning"}
OLD_NAMES = {"guided_json", "guided_regex", "guided_choice", "guided_grammar"}


# imports


def test_the_names_of_the_package_cost_nothing_until_they_are_asked_for() -> None:
    heavy = "{'rich', 'msgspec', 'asyncio', 'starlette', 'gateway.offline'}"
    program = f"import sys, gateway; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() == []


def test_what_waits_for_the_engine_is_imported_while_it_starts() -> None:
    heavy = "{'hypercorn', 'starlette', 'numpy', 'jinja2'}"
    program = f"import sys; from gateway import LLM, AsyncLLM, LLMError; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() == []


def test_other_names_are_refused() -> None:
    assert [getattr(gateway, name).__name__ for name in gateway.__all__] == gateway.__all__
    with pytest.raises(AttributeError, match="Engine"):
        _ = gateway.Engine  # type: ignore[attr-defined]


# options


def test_options_are_those_of_the_server_by_name() -> None:
    config = start.settle("some/model", {"dtype": "float32", "threads": 2, "kv_cache_memory": "1GiB"})
    assert (config.model, config.dtype, config.threads, config.kv_cache_memory) == ("some/model", "float32", 2, 1 << 30)
    assert config.max_wait == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 8000}, "port: there is no server"),
        ({"dtyp": "float32"}, "unknown option 'dtyp'; did you mean 'dtype'"),
        ({"dtype": "int3"}, "dtype: expected one of"),
        ({"threads": -1}, "threads: expected int >= 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start.settle("model", options)


def test_options_of_servers_exist() -> None:
    assert set(Config.__struct_fields__) >= start.OF_SERVERS


# arguments


def test_arguments_are_the_fields_of_requests() -> None:
    assert set(typing.get_type_hints(PromptSampling)) == field_names(CompletionRequest) - OF_COMPLETIONS - OLD_NAMES
    assert set(typing.get_type_hints(ChatSampling, {"Any": Any})) == field_names(ChatRequest) - OF_CHATS - OLD_NAMES


def test_one_or_several() -> None:
    assert not isinstance(prompt_asks("text", {}), list) and not isinstance(prompt_asks([1, 2], {}), list)
    assert [len(typing.cast(list[Any], prompt_asks(many, {}))) for many in (["a", "b"], [[1], [2]], [])] == [2, 2, 0]
    message = {"role": "user", "content": "Hello"}
    assert not isinstance(chat_asks([message], {}), list)
    assert len(typing.cast(list[Any], chat_asks([[message], [message]], {}))) == 2


def test_numbers_of_other_libraries_are_numbers() -> None:
    ask = prompt_asks([numpy.int64(3), numpy.int64(4)], {"temperature": numpy.float32(0.5)})
    assert (
        not isinstance(ask, list) and b'"prompt":[3,4]' in ask.body("toy") and b'"temperature":0.5' in ask.body("toy")
    )


@pytest.mark.parametrize(
    ("given", "sampling", "param"),
    [("text", {"n": 2}, "n"), (["a", "b"], {}, "prompt"), ("text", {"tools": []}, "tools")],
)
def test_what_a_stream_does_not_take(given: Any, sampling: dict[str, Any], param: str) -> None:
    with pytest.raises(LLMError) as raised:
        stream_ask(given, sampling)
    assert raised.value.param == param


# the session, over a fake engine


class NoProcess:
    """In the supervisor's place."""

    async def close(self) -> None: ...

    def kill(self) -> None: ...


def session(engine: FakeEngine, room: Room | None = None, model: ServedModel | None = None) -> Session:
    services = replace(toy_services(engine, model), settings=settings_of(Config()))
    return Session(services, typing.cast(Any, NoProcess()), room or Room(8, 1000))


def answering(text: str = "Hi", refusal: Callable[[Submit], Exception | None] = lambda submit: None) -> FakeEngine:
    return FakeEngine(script=lambda submit, choice: Script.of(text), refusal=refusal)


async def run(session: Session, prompts: list[str], **sampling: Any) -> list[Result]:
    asks = prompt_asks(prompts, sampling)
    assert isinstance(asks, list)
    async with asyncio.timeout(DEADLINE_S):
        return await session.run_all(asks, None)


async def test_no_more_is_in_the_engine_than_its_queue_takes() -> None:
    engine = FakeEngine(automatic=False)
    asking = asyncio.create_task(run(session(engine, Room(4, 1000)), [str(number) for number in range(10)], n=2))
    seen = 0
    while not asking.done():
        await asyncio.sleep(0)
        seen = max(seen, len(engine.playing))
        if engine.playing:
            engine.step()
    assert seen == 4 and len(asking.result()) == 10


async def test_a_full_queue_is_tried_again_when_another_has_ended() -> None:
    refused: list[Submit] = []

    def refusal(submit: Submit) -> Exception | None:
        if submit.prompt == list(b"b") and not refused:
            refused.append(submit)
            return Rejected("queue_full", "full")
        return None

    results = await run(session(answering(refusal=refusal)), ["a", "b", "c"])
    assert [result.text for result in results] == ["Hi"] * 3 and refused


async def test_an_engine_that_is_gone_ends_the_rest() -> None:
    def refusal(submit: Submit) -> Exception | None:
        return EngineUnavailable("gone") if submit.prompt == list(b"2") else None

    engine = answering(refusal=refusal)
    with pytest.raises(LLMError, match="gone") as raised:
        await run(session(engine, Room(1, 1000)), [str(number) for number in range(9)])
    assert [isinstance(each, Result) for each in raised.value.results] == [True] * 2 + [False] * 7
    assert len(engine.submitted) == 3


async def test_a_call_that_is_cancelled_takes_its_work_along() -> None:
    engine = FakeEngine(automatic=False)
    asking = asyncio.create_task(run(session(engine, Room(4, 1000)), [str(number) for number in range(10)]))
    await engine.until(lambda: len(engine.playing) == 4)
    asking.cancel()
    await asyncio.wait({asking}, timeout=DEADLINE_S)
    assert asking.cancelled() and not engine.playing and len(engine.aborted) == 4


async def test_nothing_is_taken_after_the_end() -> None:
    ended = session(answering())
    await ended.close()
    with pytest.raises(LLMError, match="closed"):
        await run(ended, ["a"])


async def test_reasoning_is_apart_from_the_text() -> None:
    thinking = session(answering("<think>Hm.</think>Yes."), model=toy_model(reasoning=ReasoningFormat()))
    ask = chat_asks([{"role": "user", "content": "Well?"}], {})
    assert not isinstance(ask, list)
    (output,) = (await thinking.run(ask)).outputs
    assert (output.reasoning, output.text) == ("Hm.", "Yes.")
    assert (output.message.reasoning_content, output.message.content) == ("Hm.", "Yes.")


async def test_what_all_share_is_complained_of_once() -> None:
    engine = answering()
    with pytest.raises(LLMError, match=r"^temperature") as raised:
        await run(session(engine), [str(number) for number in range(99)], temperature=9.0)
    assert raised.value.param == "temperature" and not engine.submitted
    assert len(raised.value.results) == 99 and len(set(map(id, raised.value.results))) <= 8  # those under way


# LLM, over the same


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """Those that LLMs open."""
    opened: list[Session] = []

    async def open_session(plan: object, report: object) -> Session:
        opened.append(session(FakeEngine(script=lambda submit, choice: Script.of("Hi", "stop"))))
        return opened[-1]

    monkeypatch.setattr(start, "find", lambda *given: None)
    monkeypatch.setattr(start, "open_session", open_session)
    return opened


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "headrace"]


def test_an_llm_ends_once(sessions: list[Session]) -> None:
    with gateway.LLM() as llm:
        assert llm.generate("a").text == "Hi"
        assert threads()
    llm.close()
    assert sessions[0]._closed and not threads()
    for ask in (lambda: llm.generate("a"), lambda: llm.generate(["a"]), lambda: next(llm.stream("a"))):
        with pytest.raises(LLMError, match="closed"):
            ask()


def test_an_llm_that_is_forgotten_ends(sessions: list[Session]) -> None:
    llm = gateway.LLM()
    assert "".join(llm.stream("a")) == "Hi"
    del llm
    gc.collect()
    assert sessions[0]._closed and not threads()


def test_many_threads_use_one_llm(sessions: list[Session]) -> None:
    with gateway.LLM() as llm, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: llm.generate([str(number)] * 3), range(40)))
    assert [[result.text for result in each] for each in results] == [["Hi"] * 3] * 40


def test_what_ends_the_wait_ends_the_work(sessions: list[Session]) -> None:
    """As Ctrl-C does, wherever it finds the program."""
    ended, main = list[str](), threading.get_ident()

    async def work() -> None:
        try:
            signal.pthread_kill(main, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append("cleaned up")

    with gateway.LLM() as llm:
        for times in range(1, 21):  # some find it before it waits
            with pytest.raises(KeyboardInterrupt):
                llm._engine.thread.call(work())
            assert ended == ["cleaned up"] * times
        assert llm.generate("a").text == "Hi"


# room


async def test_the_room_is_entered_in_order_and_left_by_the_cancelled() -> None:
    room, order = Room(2, 10), list[str]()

    async def stay(name: str, num_seqs: int, num_tokens: int, until: asyncio.Event) -> None:
        async with room.held(num_seqs, num_tokens):
            order.append(name)
            await until.wait()

    gates = {name: asyncio.Event() for name in "abcd"}
    sizes = {"a": (1, 6), "b": (1, 6), "c": (1, 1), "d": (9, 99)}
    tasks = {name: asyncio.create_task(stay(name, *sizes[name], gates[name])) for name in "abcd"}
    await asyncio.sleep(0)
    assert order == ["a"]  # c would fit, and waits for b
    tasks["b"].cancel()
    await asyncio.wait({tasks["b"]}, timeout=DEADLINE_S)
    await asyncio.sleep(0)
    assert order == ["a", "c"]
    for name in "acd":
        gates[name].set()
    await asyncio.wait({tasks["d"]}, timeout=DEADLINE_S)
    assert order == ["a", "c", "d"] and room.num_inside == 0  # alone, one may be larger than the room


# the bar


def exchange(prompt: int, generated: int, ttft_s: float | None) -> Exchange:
    return Exchange("id", "", 0.0, prompt_tokens=prompt, generated_tokens=generated, ttft_s=ttft_s)


def test_a_bar_tells_what_is_done_and_how_fast() -> None:
    now, tally, out = 10.0, Tally(4), io.StringIO()
    with Bar(tally, Console(file=out, width=120), lambda: now) as bar:
        tally.open = {1: exchange(100, 5, 0.1), 2: exchange(50, 0, None), 3: exchange(30, 20, 0.2)}
        tally.end(3)
        now = 12.0
        bar.show()
    assert "1/4" in out.getvalue() and "tok/s: 65 in, 12 out" in out.getvalue()


def test_a_bar_is_for_terminals_and_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bar_of(Tally(5), None) is None and bar_of(Tally(5), False) is None
    assert bar_of(Tally(1), True) is not None
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes a terminal of anything, to rich
    assert bar_of(Tally(5), None) is not None and bar_of(Tally(1), None) is None and bar_of(Tally(5), False) is None
