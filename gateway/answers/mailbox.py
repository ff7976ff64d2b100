"""Between a request's outputs and its reader: what a slow reader has not taken yet is merged, one delta a choice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.answers.choice import Delta
from gateway.errors import ApiError

_BYTES_PER_MARK = 64  # what a waiting logprob is counted as; top_logprobs come on top


class SlowReader(Exception):
    """More is unread than a reader may leave."""


class Mailbox:
    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._unread: dict[int, Delta] = {}
        self._texts: dict[int, list[str]] = {}  # joined once, when read: adding to a string would copy it each time
        self._num_bytes = 0
        self._error: ApiError | None = None
        self._reader: asyncio.Future[None] | None = None  # while it waits
        self.remark = b""  # for who has a stream: a comment, to be sent with what comes next
        self.shortcut: Callable[[], bool] | None = None  # may take what would wake the reader: whether it did

    def put(self, delta: Delta) -> None:
        """Raises SlowReader over the cap; the delta is kept all the same."""
        unread = self._unread.get(delta.index)
        if unread is None:
            unread = self._unread[delta.index] = Delta(delta.index)
            self._texts[delta.index] = []
        self._merge(unread, delta)
        self._wake(delta.finish is None)

    def put_text(self, index: int, text: str) -> None:
        """As `put` of a delta that is nothing but text, in less time."""
        texts = self._texts.get(index)
        if texts is None:
            self._unread[index] = Delta(index)
            texts = self._texts[index] = []
        texts.append(text)
        self._num_bytes += len(text)
        self._wake(True)

    def _wake(self, goes_on: bool) -> None:
        if self._reader is not None and not self._reader.done():
            if goes_on and self.shortcut is not None and self.shortcut():
                return
            self._reader.set_result(None)
        if self._max_bytes is not None and self._num_bytes > self._max_bytes:
            raise SlowReader

    def _merge(self, unread: Delta, delta: Delta) -> None:
        self._texts[delta.index].append(delta.text)
        self._num_bytes += len(delta.text)
        if delta.marks:
            if unread.marks is None:
                unread.marks = []
            unread.marks += delta.marks
            self._num_bytes += sum(_BYTES_PER_MARK * (1 + len(mark.logprob.top_ids)) for mark in delta.marks)
        if delta.parts is not None:
            if unread.parts is None:
                unread.parts = []
            unread.parts += delta.parts
        unread.tokens += delta.tokens
        unread.prompt = unread.prompt or delta.prompt
        unread.finish, unread.stop = delta.finish, delta.stop

    def fail(self, error: ApiError) -> None:
        """The first error counts. It is raised once everything before it has been read."""
        if self._error is None:
            self._error = error
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def filled(self) -> None:
        """Waits for anything to read; one reader at a time. Raises the error that ended the request if there is nothing
        else."""
        if not self._unread and self._error is None:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._error is not None and not self._unread:
            raise self._error

    async def take(self) -> list[Delta]:
        """Waits for anything new; never empty. Raises the error that ended the request, after what came before it."""
        await self.filled()
        return self.take_now()

    def take_now(self) -> list[Delta]:
        """What there is."""
        deltas = list(self._unread.values())
        for delta in deltas:
            delta.text = "".join(self._texts[delta.index])
        self._unread, self._texts, self._num_bytes = {}, {}, 0
        return deltas

    async def discard_until_error(self) -> None:
        """For who has no use for half an answer. Raises the error."""
        while True:
            await self.take()
