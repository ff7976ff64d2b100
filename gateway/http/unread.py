"""What of a request's body is still to come when its answer begins.

Most refusals do not wait for a body. But a connection of HTTP/1.1 on which a body is still coming can carry no further
request: Hypercorn closes it after the answer, without a word to a client that may be sending its next request there.
So what little is left is read first, and where that does not help, the answer says that the connection ends
(RFC 9112, section 9.6). HTTP/2 has no words for that, and Hypercorn (0.18) ends a connection on which more comes of a
request that has been answered.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import Message, Receive, Scope

LEFT_BYTES = 64 << 10  # that are read for the sake of the connection
LEFT_S = 1.0  # in which they come

CLOSE = (b"connection", b"close")

Headers = list[tuple[bytes, bytes]]
_discarding: set[asyncio.Task[None]] = set()  # the loop itself does not hold them


class Inbound:
    """Of one request."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._is_whole = not announces_body(scope)
        self._says_close = scope["http_version"] in ("1.0", "1.1")

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):  # its end, or its client's
            self._is_whole = True
        return message

    async def headers(self, given: Headers) -> Headers:
        """Those of an answer that begins now, with what there is to say of the connection."""
        kept = [each for each in given if each != CLOSE]
        must_close = self._says_close and len(kept) < len(given)
        if not self._is_whole and not must_close:
            await self._read_left()
        if not self._is_whole:
            self._discard_left()
        return [*kept, CLOSE] if must_close or (self._says_close and not self._is_whole) else kept

    async def _read_left(self) -> None:
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LEFT_S):
                while not self._is_whole and size <= LEFT_BYTES:
                    size += len((await self.receive()).get("body", b""))

    def _discard_left(self) -> None:
        """Until the answer ends, and the connection with it. Hypercorn holds few pieces of a body that nobody takes,
        and would wait for room before it could tell of that end."""

        async def discard() -> None:
            while not self._is_whole:
                await self.receive()

        task = asyncio.create_task(discard(), name="discard")
        _discarding.add(task)
        task.add_done_callback(_discarding.discard)


def announces_body(scope: Scope) -> bool:
    return any(
        name.lower() == b"transfer-encoding" or (name.lower() == b"content-length" and value.strip() != b"0")
        for name, value in scope["headers"]
    )
