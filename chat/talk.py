"""The conversation of a person in a terminal: read, ask, show, again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from chat.answer import receive
from chat.client import AskError, Client
from chat.commands import Commands, Then
from chat.conversation import Conversation, Question
from chat.keyboard import Dropped, unechoed
from chat.screen import Screen

HOW_TO_QUIT = "Ctrl-D or quit ends; /help lists commands"
CUT_OFF = "(cut off: the limit of tokens is reached)"
STOPPED = "(stopped)"


class Reads(Protocol):
    def message(self) -> str:
        """Raises EOFError, Dropped or KeyboardInterrupt."""


@dataclass(frozen=True, slots=True)
class Talk:
    conversation: Conversation
    client: Client
    keyboard: Reads
    screen: Screen
    terminal: TextIO  # where typing is echoed
    why_it_ended: Callable[[], str]  # the server; "": it lives, or is not ours

    def run(self) -> int:
        """Until it is ended; the exit code."""
        commands, screen = Commands(self.conversation), self.screen
        while True:
            try:
                outcome = commands.run(self.keyboard.message())
                write = screen.error if outcome.is_error else screen.note
                for line in outcome.lines:
                    write(line)
                if outcome.then is Then.END:
                    return 0
                if outcome.question is not None and not self._ask(outcome.question):
                    return 1
            except EOFError:
                screen.blank()
                return 0
            except Dropped:
                screen.blank()
            except KeyboardInterrupt:
                screen.blank()
                screen.note(HOW_TO_QUIT)

    def _ask(self, question: Question) -> bool:
        """Whether there is somebody left to ask."""
        conversation, screen = self.conversation, self.screen
        conversation.unanswered = question
        try:
            with unechoed(self.terminal):
                answer = receive(self.client.ask(conversation.body(question)), screen)
        except AskError as error:
            ended = self.why_it_ended()
            screen.error(f"the server has ended: {ended}" if ended else str(error))
            return not ended
        conversation.stats.add(answer.taken)
        if answer.text:
            conversation.keep(question, answer.text)
        if answer.finish in ("", "length"):
            screen.note(CUT_OFF if answer.finish else STOPPED)
        screen.blank()
        return True
