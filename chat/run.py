"""From flags to an exit code: 0, 1 where there is no answer or not the whole of it, 2 for usage, 128 and a signal."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import platformdirs

from chat.answer import receive
from chat.client import AskError, Client, UrlError, api_url
from chat.conversation import Conversation
from chat.flags import Flags
from chat.history import History
from chat.keyboard import Keyboard
from chat.screen import Plain, Progress, Screen, clean
from chat.server import OwnServer, StartFailed, own_server, server_options
from chat.settings import Number, SettingError, checked
from chat.talk import CUT_OFF, HOW_TO_QUIT, Talk

MAX_PROMPT_BYTES = 16 << 20
USUAL: Mapping[str, Number] = {"temperature": 0.6, "top_k": 50}  # of a server of our own, as nanochat has them
OF_A_SERVER = ("source", "model_tag", "step", "device_type", "dtype")  # flags of one that is started


class UsageError(Exception):
    """One line that names the flag."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All that is taken from the process."""

    environ: Mapping[str, str]
    stdin: TextIO
    stdout: TextIO
    stderr: TextIO


@dataclass(frozen=True, slots=True)
class Plan:
    url: str  # "": a server is to be started
    api_key: str
    settings: dict[str, Number]
    prompt: str | None  # None: a conversation


def main(flags: Flags, around: Surroundings) -> int:
    for signum in (signal.SIGTERM, signal.SIGHUP):  # so that what is held is released
        signal.signal(signum, _end)
    if isinstance(around.stdout, io.TextIOWrapper):
        around.stdout.reconfigure(errors="replace")
    try:
        plan = checked_plan(flags, around.stdin)
        return _run(plan, flags, around)
    except UsageError as error:
        return _complain(around, str(error), 2)
    except StartFailed as error:
        return _complain(around, str(error), error.code)
    except AskError as error:
        return _complain(around, str(error), 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the answer has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        return 128 + signal.SIGPIPE


def checked_plan(flags: Flags, stdin: TextIO) -> Plan:
    """Reads the prompt where it comes from a pipe. Raises UsageError."""
    given = [f"--{name.replace('_', '-')}" for name in OF_A_SERVER if getattr(flags, name) is not None]
    if flags.url and given:
        raise UsageError(f"{given[0]} is of a server that is started here; the one at --url has its model already")
    if flags.api_key and not re.fullmatch(r"[!-~]+", flags.api_key):
        raise UsageError("--api-key: a key is visible ASCII characters")
    settings = {} if flags.url else dict(USUAL)
    try:
        url = api_url(flags.url) if flags.url else ""
        for name in ("temperature", "top_k", "max_tokens"):
            if (value := getattr(flags, name)) is not None:
                settings[name] = checked(name, value)
    except UrlError as error:
        raise UsageError(f"--url: {error}") from error
    except SettingError as error:
        raise UsageError(f"--{str(error).replace('_', '-', 1)}") from error
    return Plan(url, flags.api_key or "", settings, _prompt(flags, stdin))


def _prompt(flags: Flags, stdin: TextIO | None) -> str | None:
    if flags.prompt is not None:
        if not flags.prompt.strip():
            raise UsageError("--prompt: it is empty")
        return flags.prompt
    if stdin is not None and stdin.isatty():
        return None
    data = stdin.buffer.read(MAX_PROMPT_BYTES + 1) if stdin is not None else b""
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"standard input: more than {MAX_PROMPT_BYTES >> 20} MiB")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8: {error}") from error
    if not text:
        raise UsageError("standard input, which is no terminal, has no prompt")
    return text


def _run(plan: Plan, flags: Flags, around: Surroundings) -> int:
    with _client(plan, flags, around) as (client, server):
        model = flags.model if flags.model and plan.url else server.model if server else client.first_model()
        conversation = Conversation(model, flags.system or "", plan.settings)
        if plan.prompt is not None:
            return _answer_once(client, conversation, plan.prompt, around)
        return _talk(client, server, conversation, flags, around)


@contextmanager
def _client(plan: Plan, flags: Flags, around: Surroundings) -> Iterator[tuple[Client, OwnServer | None]]:
    if plan.url:
        yield Client(plan.url, plan.api_key), None
        return
    progress = Progress(around.stderr, around.stderr.isatty())
    try:
        with own_server(server_options(flags), around.environ, progress.show) as server:
            progress.close()
            yield Client(server.url, server.api_key), server
    finally:
        progress.close()


def _answer_once(client: Client, conversation: Conversation, prompt: str, around: Surroundings) -> int:
    """Of an answer that Ctrl-C stops, what came stays."""
    answer = receive(client.ask(conversation.body(conversation.question(prompt))), Plain(around.stdout))
    if answer.finish == "length":
        _complain(around, CUT_OFF.strip("()"), 0)
    return 0 if answer.finish else 128 + signal.SIGINT


def _talk(
    client: Client, server: OwnServer | None, conversation: Conversation, flags: Flags, around: Surroundings
) -> int:
    notes = around.stdout if around.stdout.isatty() else around.stderr
    is_styled = notes.isatty() and around.environ.get("TERM") != "dumb" and not around.environ.get("NO_COLOR")
    screen = Screen(around.stdout, notes, is_styled)
    screen.note(f"{conversation.model}{'' if server else f' at {client.url}'}. {HOW_TO_QUIT}.")
    keyboard = Keyboard(History(_history_path() if flags.history else None), notes, is_styled)
    why_it_ended = server.why_it_ended if server else str
    return Talk(conversation, client, keyboard, screen, around.stdin, why_it_ended).run()


def _history_path() -> Path:
    return platformdirs.user_state_path("headrace") / "chat-history"


def _end(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


def _complain(around: Surroundings, message: str, code: int) -> int:
    print(f"headrace: {clean(' '.join(message.split()))}", file=around.stderr)
    return code
