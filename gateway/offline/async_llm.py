"""A model in a Python program that has an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack, overload

from gateway.model.fetch import DEFAULT_MODEL
from gateway.offline import start
from gateway.offline.asks import Ask, ChatSampling, PromptSampling, StreamSampling, chat_asks, prompt_asks, stream_ask
from gateway.offline.errors import closed
from gateway.offline.start import OptionValue
from gateway.offline.streams import AsyncStream

if TYPE_CHECKING:
    from gateway.offline.asks import Conversation, Prompt
    from gateway.offline.results import Result
    from gateway.offline.session import Session


class AsyncLLM:
    """As LLM, with coroutines. `async with AsyncLLM(...) as llm`, or start() and close()."""

    def __init__(
        self, model: str = DEFAULT_MODEL.name, *, progress: bool | None = None, **options: OptionValue
    ) -> None:
        """Raises ConfigError."""
        self._config = start.settle(model, options)
        self._progress = progress
        self._session: Session | None = None

    async def start(self) -> AsyncLLM:
        """Raises ModelError or EngineFailed. Called again, it does nothing."""
        if self._session is not None:
            return self
        shown = start.display(self._progress)
        report = start.report_of(shown)
        with shown or nullcontext():
            plan = await asyncio.to_thread(start.find, self._config, dict(os.environ), report)
            self._session = await start.open_session(plan, report)
        return self

    async def close(self) -> None:
        """What still runs ends with an error. Safe to call again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> AsyncLLM:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _open(self) -> Session:
        if self._session is None:
            raise closed()
        return self._session

    @overload
    async def generate(
        self, prompts: Prompt, *, progress: bool | None = None, **sampling: Unpack[PromptSampling]
    ) -> Result: ...

    @overload
    async def generate(
        self, prompts: list[str] | list[list[int]], *, progress: bool | None = None, **sampling: Unpack[PromptSampling]
    ) -> list[Result]: ...

    async def generate(
        self,
        prompts: Prompt | list[str] | list[list[int]],
        *,
        progress: bool | None = None,
        **sampling: Unpack[PromptSampling],
    ) -> Result | list[Result]:
        """As LLM.generate."""
        return await self._answered(prompt_asks(prompts, sampling), progress)

    @overload
    async def chat(
        self, messages: Conversation, *, progress: bool | None = None, **sampling: Unpack[ChatSampling]
    ) -> Result: ...

    @overload
    async def chat(
        self, messages: Sequence[Conversation], *, progress: bool | None = None, **sampling: Unpack[ChatSampling]
    ) -> list[Result]: ...

    async def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        progress: bool | None = None,
        **sampling: Unpack[ChatSampling],
    ) -> Result | list[Result]:
        """As LLM.chat."""
        return await self._answered(chat_asks(messages, sampling), progress)

    async def _answered(self, asks: Ask | list[Ask], progress: bool | None) -> Result | list[Result]:
        session = self._open
        if isinstance(asks, Ask):
            return await session.run(asks)
        return await session.run_all(asks, self._progress if progress is None else progress)

    def stream(self, given: Prompt | Conversation, **sampling: Unpack[StreamSampling]) -> AsyncStream:
        """As LLM.stream, for `async for`."""
        ask, ended = stream_ask(given, sampling), list[Any]()
        return AsyncStream(self._open.stream(ask, ended), ended)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As `generate` would make ids of it."""
        return self._open.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self._open.decode(token_ids, skip_special_tokens)

    @property
    def model_name(self) -> str:
        return self._open.model_name
