"""What the gateway asks of a format in which models write tool calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.answers.parts import Reader


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. No parameters: it takes none."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None  # JSON schema of an object
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it stands in a conversation."""

    name: str
    arguments: str  # JSON


class ToolFormat(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def markers(self) -> Sequence[str]:
        """Must be visible in the answer's text, also where they are control tokens."""

    def reader(self, new_id: Callable[[], str]) -> Reader:
        """Finds calls in one answer. `new_id` names each of them."""

    def render(self, calls: Sequence[Call]) -> str:
        """The calls as a model writes them. Arguments that are no JSON object stand as they are."""

    def grammar(
        self, tools: Sequence[Tool], *, required: bool, parallel: bool, strict_only: bool, special: Mapping[str, int]
    ) -> str:
        """A Lark grammar for llguidance, of answers whose calls are calls of `tools` with arguments by their schemas.

        required: calls and nothing else. parallel: more than one call may come. strict_only: tools that are not strict
        take any JSON object. special: ids of control tokens, which markers are where they are found there.
        Raises ValueError where a schema cannot be enforced in this format.
        """
