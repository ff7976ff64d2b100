"""What is typed, and what becomes of it."""

import json
import re
from pathlib import Path

import pytest

from chat.answer import Taken
from chat.commands import COMMANDS, Commands, Then
from chat.conversation import Conversation


@pytest.fixture
def commands() -> Commands:
    return Commands(Conversation("toy", settings={"temperature": 0.6}))


def say(commands: Commands, text: str, answer: str) -> None:
    asked = commands.run(text)
    assert asked.then is Then.ASK and asked.question is not None
    commands.conversation.keep(asked.question, answer)


def told(commands: Commands, text: str) -> str:
    outcome = commands.run(text)
    assert outcome.then is Then.READ and not outcome.is_error, outcome
    return "\n".join(outcome.lines)


def refusal(commands: Commands, text: str) -> str:
    outcome = commands.run(text)
    assert outcome.then is Then.READ and outcome.is_error, outcome
    return "\n".join(outcome.lines)


@pytest.mark.parametrize("text", ["quit", "exit", "/quit", "/exit", "QUIT", "/Exit"])
def test_the_end(commands: Commands, text: str) -> None:
    assert commands.run(text).then is Then.END


@pytest.mark.parametrize("text", ["clear", "/clear", "Clear", "/new"])
def test_a_new_conversation_keeps_the_system_prompt(commands: Commands, text: str) -> None:
    told(commands, "/system Be brief.")
    say(commands, "hi", "ho")
    assert told(commands, text) == "Conversation cleared."
    body = commands.conversation.body(commands.conversation.question("new"))
    roles = [(message.role, message.content) for message in body["messages"]]  # type: ignore[attr-defined]
    assert roles == [("system", "Be brief."), ("user", "new")]


@pytest.mark.parametrize("text", ["quit smoking", "what is /help?", "/etc/hosts is what?", "//", "/ x", "help"])
def test_what_is_a_message(commands: Commands, text: str) -> None:
    outcome = commands.run(text)
    assert outcome.then is Then.ASK and outcome.question is not None and outcome.question.text == text


def test_nothing_is_nothing(commands: Commands) -> None:
    assert commands.run("").then is Then.READ


def test_turns_are_sent_along(commands: Commands) -> None:
    say(commands, "one", "1")
    say(commands, "two", "2")
    body = commands.conversation.body(commands.conversation.question("three"))
    contents = [message.content for message in body["messages"]]  # type: ignore[attr-defined]
    assert contents == ["one", "1", "two", "2", "three"]
    assert (body["model"], body["temperature"]) == ("toy", 0.6)


def test_an_answer_again_follows_what_the_first_did(commands: Commands) -> None:
    assert refusal(commands, "/retry") == "there is nothing to answer again"
    say(commands, "one", "1")
    say(commands, "two\nlines", "2")
    again = commands.run("/retry")
    assert again.then is Then.ASK and again.lines == ("> two ...",) and again.question
    assert [turn.content for turn in again.question.before] == ["one", "1"]
    assert [turn.content for turn in commands.conversation.turns] == [
        "one",
        "1",
        "two\nlines",
        "2",
    ]  # until then
    commands.conversation.keep(again.question, "3")
    assert [turn.content for turn in commands.conversation.turns] == ["one", "1", "two\nlines", "3"]


def test_a_message_without_an_answer_can_be_sent_again(commands: Commands) -> None:
    say(commands, "one", "1")
    asked = commands.run("two").question
    commands.conversation.unanswered = asked
    assert commands.run("/retry").question == asked
    commands.run("/clear")
    assert commands.conversation.last_question() is None


def test_the_system_prompt(commands: Commands) -> None:
    assert told(commands, "/system") == "no system prompt"
    assert told(commands, "/system Be brief.\nAnd kind.") == "system: Be brief.\nAnd kind."
    assert told(commands, '/system Say "yes"') == 'system: Say "yes"'
    assert told(commands, "/system none") == "no system prompt"


def test_settings(commands: Commands) -> None:
    settings = commands.conversation.settings
    assert told(commands, "/set temperature 0.9") == "temperature 0.9"
    assert told(commands, "/set top-k=20") == "top_k 20"
    assert told(commands, "/set  seed  7 ") == "seed 7"
    assert settings == {"temperature": 0.9, "top_k": 20, "seed": 7}
    assert told(commands, "/set seed none") == "seed none"
    assert "seed" not in settings
    assert told(commands, "/set top_k").startswith("top_k 20 ")
    assert {"temperature 0.9", "top_k 20", "min_p none"} <= {
        line.split("  (")[0] for line in told(commands, "/set").splitlines()
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/set temperature hot", "temperature: a number, not 'hot'"),
        ("/set temperature nan", "temperature: from 0 to 2, not nan"),
        ("/set temperature 2.1", "temperature: from 0 to 2, not 2.1"),
        ("/set top_k 1.5", "top_k: a whole number, not '1.5'"),
        ("/set max_tokens 0", "max_tokens: from 1 to 1073741824, not 0"),
        ("/set temperatur 1", "no such setting: temperatur; did you mean temperature?"),
        ("/set x 1", "no such setting: x; there are temperature, top_k, "),
        ("/sytem x", "no such command: /sytem; did you mean /system?"),
        ("/frobnicate", "no such command: /frobnicate; /help lists them"),
        ("/save", "/save FILE: "),
        ("/save a.md", "there is nothing to save yet"),
    ],
)
def test_mistakes_are_told_and_change_nothing(commands: Commands, text: str, problem: str) -> None:
    assert refusal(commands, text).startswith(problem)
    assert commands.conversation.settings == {"temperature": 0.6}


def test_a_conversation_is_saved_as_it_was_and_overwrites_nothing(commands: Commands, tmp_path: Path) -> None:
    told(commands, "/system Be brief.")
    say(commands, "Hi, ünïcode", "Ho\n")
    markdown, as_json, other = tmp_path / "a b.md", tmp_path / "a.json", tmp_path / "other.md"
    assert told(commands, f"/save {markdown}") == f"2 messages written to {markdown}"
    assert markdown.read_text() == "## system\n\nBe brief.\n\n## user\n\nHi, ünïcode\n\n## assistant\n\nHo\n"
    told(commands, f"/save {as_json}")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi, ünïcode"},
        {"role": "assistant", "content": "Ho\n"},
    ]
    assert json.loads(as_json.read_text()) == {"model": "toy", "messages": messages, "temperature": 0.6}
    say(commands, "more", "yes")
    assert told(commands, f"/save {markdown}").startswith("4 messages")  # its own file
    other.write_text("mine")
    assert refusal(commands, f"/save {other}") == f"{other} is there already"
    assert other.read_text() == "mine"
    nowhere = tmp_path / "no" / "a.md"
    assert refusal(commands, f"/save {nowhere}") == f"cannot write {nowhere}: No such file or directory"
    assert refusal(commands, "/save ~nobody-here/a.md").startswith("cannot write ~nobody-here/a.md: ")


def test_figures(commands: Commands) -> None:
    assert told(commands, "/stats") == "no answer yet"
    stats = commands.conversation.stats
    stats.add(Taken(prompt_tokens=40, cached_tokens=16, output_tokens=11, ttft_s=0.25, decode_s=0.5))
    stats.add(Taken(output_tokens=5, ttft_s=0.75, decode_s=0.5, is_counted_here=True))
    assert told(commands, "/stats").splitlines() == [
        "last answer: unknown prompt tokens, about 5 tokens, the first after 750 ms, then 8.0 tokens/s",
        "all 2 answers: 40 prompt tokens, 16 tokens, the first on average after 500 ms, then 14.0 tokens/s",
    ]


def test_help_names_every_command(commands: Commands) -> None:
    text = told(commands, "/help")
    assert told(commands, "/?") == text
    usages = " ".join(line[:24] for line in text.splitlines())
    assert set(COMMANDS) - set(re.findall(r"[a-z]+", usages)) == {"new", "?"}
