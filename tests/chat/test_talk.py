"""A conversation as somebody types it, with a server that fails."""

import asyncio
import io
from dataclasses import dataclass

import pytest

from chat.client import Client
from chat.conversation import Conversation
from chat.keyboard import Dropped
from chat.screen import Screen
from chat.talk import HOW_TO_QUIT, Talk
from tests.bench.toy import PATIENCE_S, Behaviour, Exchange, Toy, toy

Line = str | type[BaseException]


class Typed:
    """Each line once the one before has been dealt with."""

    def __init__(self, lines: tuple[Line, ...]) -> None:
        self._lines = list(lines)

    def message(self) -> str:
        line = self._lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


@dataclass(frozen=True)
class Told:
    code: int
    answers: str
    notes: list[str]
    asked: list[list[str]]  # the messages of each request


async def talk(behave: Behaviour, *lines: Line, ended: str = "") -> Told:
    out, notes, conversation = io.StringIO(), io.StringIO(), Conversation("toy", settings={"max_tokens": 2})
    async with toy(behave) as server:
        screen = Screen(out, notes, is_styled=False)
        made = Talk(
            conversation, Client(server.url, "", PATIENCE_S), Typed(lines), screen, io.StringIO(), lambda: ended
        )
        code = await asyncio.to_thread(made.run)
        asked = [[message["content"] for message in one.body["messages"]] for one in server.asked]
    return Told(code, out.getvalue(), notes.getvalue().splitlines(), asked)


async def fail_once(server: Toy, exchange: Exchange) -> None:
    if exchange.number == 2:
        await exchange.answer(503, {"error": {"message": "the engine is starting again"}})
        return
    await exchange.begin()
    await exchange.event({"choices": [{"delta": {"content": f"answer {exchange.number}"}, "finish_reason": "stop"}]})
    await exchange.event("[DONE]")
    await exchange.write(b"0\r\n\r\n")


async def test_what_failed_is_told_and_can_be_sent_again() -> None:
    told = await talk(fail_once, "one", "two", "/retry", "three", "quit")
    assert (told.code, told.answers) == (0, "answer 1\nanswer 3\nanswer 4\n")
    assert told.notes == ["", "the engine is starting again", "> two", "", ""]
    assert told.asked[1] == told.asked[2] == ["one", "answer 1", "two"]
    assert told.asked[3] == ["one", "answer 1", "two", "answer 3", "three"]


async def test_what_failed_is_forgotten_where_nobody_asks_again() -> None:
    told = await talk(fail_once, "one", "two", "three", EOFError)
    assert told.asked[2] == ["one", "answer 1", "three"]


async def test_a_server_of_our_own_that_has_ended_ends_the_conversation() -> None:
    told = await talk(fail_once, "one", "two", ended="out of memory")
    assert (told.code, told.notes[-1]) == (1, "the server has ended: out of memory")


@pytest.mark.parametrize(("key", "shown"), [(KeyboardInterrupt, ["", HOW_TO_QUIT]), (Dropped, [""])])
async def test_ctrl_c_at_a_prompt_ends_nothing(key: type[BaseException], shown: list[str]) -> None:
    told = await talk(fail_once, key, "/set seed x", "exit")
    assert (told.code, told.notes) == (0, [*shown, "seed: a whole number, not 'x'"])
