"""What was said so far, and how the next answer is to be drawn. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from chat.settings import Number
from chat.stats import Stats


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    before: tuple[Message, ...]  # the turns that it follows


@dataclass(slots=True)
class Conversation:
    model: str
    system: str = ""
    settings: dict[str, Number] = field(default_factory=dict)
    turns: tuple[Message, ...] = ()  # the user's and the model's in turn, without the system prompt
    stats: Stats = field(default_factory=Stats)
    unanswered: Question | None = None  # the last, where no answer came

    def question(self, text: str) -> Question:
        return Question(text, self.turns)

    def last_question(self) -> Question | None:
        """The one to ask again; its answer stays until there is another."""
        if self.unanswered or not self.turns:
            return self.unanswered
        return Question(self.turns[-2].content, self.turns[:-2])

    def body(self, question: Question) -> dict[str, object]:
        """Of the request."""
        messages = [*self.with_system(question.before), Message("user", question.text)]
        return {"model": self.model, "messages": messages, **self.settings}

    def with_system(self, turns: Sequence[Message]) -> list[Message]:
        return [*([Message("system", self.system)] if self.system else []), *turns]

    def keep(self, question: Question, answer: str) -> None:
        self.turns = (*question.before, Message("user", question.text), Message("assistant", answer))
        self.unanswered = None

    def clear(self) -> None:
        """The system prompt and the settings stay."""
        self.turns, self.unanswered = (), None
