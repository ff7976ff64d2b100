"""What a person may type besides messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import msgspec

from chat.conversation import Conversation, Question
from chat.settings import NONE, SETTINGS, SettingError, parse

WORDS = frozenset({"quit", "exit", "clear"})  # commands without a slash too, as nanochat has them
COMMAND = re.compile(r"/(?P<name>[a-z?]+)(?:\s+(?P<rest>.*))?", re.DOTALL | re.IGNORECASE)
MULTI_LINE = '''"""'''


class Then(Enum):
    READ = 1
    ASK = 2
    END = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    lines: tuple[str, ...] = ()
    then: Then = Then.READ
    question: Question | None = None  # to ask
    is_error: bool = False


def _error(line: str) -> Outcome:
    return Outcome((line,), is_error=True)


@dataclass(slots=True)
class Commands:
    conversation: Conversation
    _saved: set[Path] = field(default_factory=set)  # files of ours, which may be written again

    def run(self, text: str) -> Outcome:
        """Of whatever was typed."""
        if text.lower() in WORDS:
            return self._named(text.lower(), "")
        match = COMMAND.fullmatch(text)
        if match is None:  # "/etc/hosts says ..." is none
            return Outcome(then=Then.ASK, question=self.conversation.question(text)) if text else Outcome()
        return self._named(match["name"].lower(), (match["rest"] or "").strip())

    def _named(self, name: str, rest: str) -> Outcome:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            return _error(f"no such command: /{name}; " + (f"did you mean /{near[0]}?" if near else "/help lists them"))
        return COMMANDS[name].run(self, rest)

    def end(self, rest: str) -> Outcome:
        return Outcome(then=Then.END)

    def clear(self, rest: str) -> Outcome:
        self.conversation.clear()
        return Outcome(("Conversation cleared.",))

    def retry(self, rest: str) -> Outcome:
        question = self.conversation.last_question()
        if question is None:
            return _error("there is nothing to answer again")
        return Outcome((f"> {_first_line(question.text)}",), Then.ASK, question)

    def system(self, rest: str) -> Outcome:
        if rest:
            self.conversation.system = "" if rest.lower() == NONE else rest
        system = self.conversation.system
        return Outcome((f"system: {system}" if system else "no system prompt",))

    def set(self, rest: str) -> Outcome:
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        name, value = name.lower().replace("-", "_"), value.strip()
        settings = self.conversation.settings
        if not value:
            shown = [name] if name in SETTINGS else list(SETTINGS)
            return Outcome(tuple(f"{each} {settings.get(each, NONE)}  ({SETTINGS[each].meaning})" for each in shown))
        try:
            number = parse(name, value)
        except SettingError as error:
            return _error(str(error))
        if number is None:
            settings.pop(name, None)
        else:
            settings[name] = number
        return Outcome((f"{name} {settings.get(name, NONE)}",))

    def save(self, rest: str) -> Outcome:
        conversation = self.conversation
        if not rest:
            return _error("/save FILE: as JSON where it ends in .json, else as Markdown")
        if not conversation.turns:
            return _error("there is nothing to save yet")
        try:
            path = Path(rest).expanduser()
        except RuntimeError as error:  # of a user that there is not
            return _error(f"cannot write {rest}: {error}")
        text = as_json(conversation) if path.suffix == ".json" else as_markdown(conversation)
        try:
            with path.open("w" if path.resolve() in self._saved else "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return _error(f"{path} is there already")
        except (OSError, ValueError) as error:
            return _error(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")
        self._saved.add(path.resolve())
        return Outcome((f"{len(conversation.turns)} messages written to {path}",))

    def stats(self, rest: str) -> Outcome:
        return Outcome(tuple(self.conversation.stats.lines()))

    def help(self, rest: str) -> Outcome:
        return Outcome((*(f"{each.usage:<24}{each.meaning}" for each in COMMANDS.values() if each.usage), *KEYS))


@dataclass(frozen=True, slots=True)
class Command:
    run: Callable[[Commands, str], Outcome]
    usage: str = ""  # "": another name of one that is told
    meaning: str = ""


COMMANDS: Mapping[str, Command] = {
    "clear": Command(Commands.clear, "clear, /clear", "begin a new conversation"),
    "new": Command(Commands.clear),
    "retry": Command(Commands.retry, "/retry", "answer the last message again"),
    "system": Command(Commands.system, "/system [TEXT|none]", "show or change the system prompt"),
    "set": Command(Commands.set, "/set [NAME [X|none]]", "show or change how answers are sampled"),
    "save": Command(Commands.save, "/save FILE", "write the conversation, as Markdown or .json"),
    "stats": Command(Commands.stats, "/stats", "tokens and times, of the last answer and of all"),
    "help": Command(Commands.help, "/help", "this list"),
    "?": Command(Commands.help),
    "quit": Command(Commands.end, "quit, exit, Ctrl-D", "end"),
    "exit": Command(Commands.end),
}
KEYS = (
    f"{MULTI_LINE:<24}begins and ends a message of several lines",
    f"{'Alt-Enter, paste':<24}several lines too",
    f"{'Ctrl-C':<24}stop an answer, or drop the line",
    f"{'Up, Down, Ctrl-R':<24}what was typed before",
)


def as_json(conversation: Conversation) -> str:
    """The messages as the API takes them."""
    messages = conversation.with_system(conversation.turns)
    told = {"model": conversation.model, "messages": messages, **conversation.settings}
    return msgspec.json.format(msgspec.json.encode(told)).decode() + "\n"


def as_markdown(conversation: Conversation) -> str:
    messages = conversation.with_system(conversation.turns)
    return "\n".join(f"## {message.role}\n\n{message.content.strip()}\n" for message in messages)


def _first_line(text: str) -> str:
    first, _, more = text.partition("\n")
    return f"{first} ..." if more else first
