"""A model in a Python program."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Unpack, overload

from gateway.model.fetch import DEFAULT_MODEL, Report
from gateway.offline import start
from gateway.offline.asks import Ask, ChatSampling, PromptSampling, StreamSampling, chat_asks, prompt_asks, stream_ask
from gateway.offline.loop_thread import LoopThread
from gateway.offline.start import OptionValue, Plan
from gateway.offline.streams import AsyncStream, Stream

if TYPE_CHECKING:
    from gateway.offline.asks import Conversation, Prompt
    from gateway.offline.results import Result
    from gateway.offline.session import Session


class LLM:
    """A model with an engine process of its own, for any number of threads. It ends with `close`, with the `with`
    block, when it is forgotten, and with the program at the latest."""

    def __init__(
        self, model: str = DEFAULT_MODEL.name, *, progress: bool | None = None, **options: OptionValue
    ) -> None:
        """model: a .gguf file, a folder, org/name on the hub, or the default's name. options: those of docs/config.md
        that are not of servers, by their names there. progress: bars on standard error; None: where that is a terminal.
        Raises ConfigError, ModelError or EngineFailed."""
        config = start.settle(model, options)
        self._progress = progress
        shown = start.display(progress)
        with shown or nullcontext():
            report = start.report_of(shown)
            plan = start.find(config, dict(os.environ), report)
            self._engine = _Engine(plan, report)
        self._finalizer = weakref.finalize(self, self._engine.close)

    def close(self) -> None:
        """What still runs in other threads ends with an error. Safe to call again."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @overload
    def generate(
        self, prompts: Prompt, *, progress: bool | None = None, **sampling: Unpack[PromptSampling]
    ) -> Result: ...

    @overload
    def generate(
        self, prompts: list[str] | list[list[int]], *, progress: bool | None = None, **sampling: Unpack[PromptSampling]
    ) -> list[Result]: ...

    def generate(
        self,
        prompts: Prompt | list[str] | list[list[int]],
        *,
        progress: bool | None = None,
        **sampling: Unpack[PromptSampling],
    ) -> Result | list[Result]:
        """Continues a prompt, text or token ids, or each of a list of them, as /v1/completions does. One gives a
        Result, a list gives a list in its order. Raises LLMError; of a list, when all have ended."""
        return self._answered(prompt_asks(prompts, sampling), progress)

    @overload
    def chat(
        self, messages: Conversation, *, progress: bool | None = None, **sampling: Unpack[ChatSampling]
    ) -> Result: ...

    @overload
    def chat(
        self, messages: Sequence[Conversation], *, progress: bool | None = None, **sampling: Unpack[ChatSampling]
    ) -> list[Result]: ...

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        progress: bool | None = None,
        **sampling: Unpack[ChatSampling],
    ) -> Result | list[Result]:
        """Answers a conversation, or each of a list of them, as /v1/chat/completions does. Raises LLMError."""
        return self._answered(chat_asks(messages, sampling), progress)

    def _answered(self, asks: Ask | list[Ask], progress: bool | None) -> Result | list[Result]:
        thread, session = self._engine.thread, self._engine.session
        if isinstance(asks, Ask):
            return thread.call(session.run(asks))
        return thread.call(session.run_all(asks, self._progress if progress is None else progress))

    def stream(self, given: Prompt | Conversation, **sampling: Unpack[StreamSampling]) -> Stream:
        """The text that a prompt or a conversation is answered with, in pieces as they come; `result` of what this
        returns has the rest when they have been read. Raises LLMError, some of it when the first piece is read."""
        ask, ended = stream_ask(given, sampling), list["Result"]()
        pieces = self._engine.session.stream(ask, ended)
        return Stream(AsyncStream(pieces, ended), self._engine.thread)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As `generate` would make ids of it."""
        return self._engine.session.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self._engine.session.decode(token_ids, skip_special_tokens)

    @property
    def model_name(self) -> str:
        return self._engine.session.model_name


class _Engine:
    """All that has to be ended, apart from the LLM, so that an LLM may be forgotten."""

    def __init__(self, plan: Plan, report: Report) -> None:
        self.thread = LoopThread()
        try:
            self.session: Session = self.thread.call(start.open_session(plan, report))
        except BaseException:
            self.thread.end()
            raise

    def close(self) -> None:
        try:
            if not self.thread.is_here:  # where a garbage collection may find it, too
                self.thread.call(self.session.close())
        finally:
            self.session.kill()
            self.thread.end()
