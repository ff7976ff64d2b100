"""Text as it comes, piece by piece, and the whole result at its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from gateway.offline.errors import LLMError

if TYPE_CHECKING:
    from gateway.offline.loop_thread import LoopThread
    from gateway.offline.results import Result


class AsyncStream(AsyncIterator[str]):
    """Begins when it is first read. Whoever stops reading early may close it; or else it ends when it is forgotten."""

    def __init__(self, pieces: AsyncGenerator[str], ended: list[Result]) -> None:
        self._pieces = pieces
        self._ended = ended

    @property
    def result(self) -> Result:
        """All of it. There, when the last piece has been read."""
        if not self._ended:
            raise RuntimeError("the stream has not been read to its end")
        return self._ended[0]

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        await self._pieces.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()


class Stream(Iterator[str]):
    """The same for a program without an event loop."""

    def __init__(self, stream: AsyncStream, thread: LoopThread) -> None:
        self._stream = stream
        self._thread = thread

    @property
    def result(self) -> Result:
        return self._stream.result

    def __next__(self) -> str:
        piece = self._thread.call(_next_of(self._stream))
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        with suppress(LLMError):  # the LLM has been closed, and so has this
            self._thread.call(self._stream.aclose())

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


async def _next_of(stream: AsyncStream) -> str | None:
    """None: that was all. StopAsyncIteration does not pass from a task to who waits for it."""
    return await anext(stream, None)
