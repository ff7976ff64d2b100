"""What goes wrong with one request of a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.offline.results import Result


class LLMError(Exception):
    """`param` is the path of the argument at fault, such as temperature, prompts[3] or messages[0][1].role; `code` as
    the server's errors have it. Where it comes from a list, the others ran to their end: `results` has what each gave,
    in order, a Result or its own LLMError."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.results: Sequence[Result | LLMError] = ()


def closed() -> LLMError:
    return LLMError("The LLM is closed, or has not been started.", code="closed")
