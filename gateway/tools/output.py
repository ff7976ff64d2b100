"""What a reader of tool calls gives out: parts in order, with the whitespace around calls left out."""

from __future__ import annotations

from collections.abc import Callable

from gateway.answers.parts import CallArguments, CallStart, Part, Text, merged

_SPACE = " \t\r\n"


class Output:
    def __init__(self, new_id: Callable[[], str]) -> None:
        self.num_calls = 0
        self._new_id = new_id
        self._parts: list[Part] = []
        self._space: list[Text] = []  # whitespace at the end of the text, left out if a call follows
        self._after_call = False

    def text(self, text: str, end: int) -> None:
        """`end`: characters of what is read, up to the end of this text."""
        if self._after_call:
            text = text.lstrip(_SPACE)
            self._after_call = not text
        solid = text.rstrip(_SPACE)
        start = end - len(text)
        if solid:
            self._parts += [*self._space, Text(solid, start)]
            self._space.clear()
        if len(solid) < len(text):
            self._space.append(Text(text[len(solid) :], start + len(solid)))

    def start(self, name: str) -> int:
        """Starts a call, and gives its number."""
        self._space.clear()
        self._after_call = True
        self._parts.append(CallStart(self.num_calls, self._new_id(), name))
        self.num_calls += 1
        return self.num_calls - 1

    def arguments(self, call: int, text: str) -> None:
        self._parts.append(CallArguments(call, text))

    def end(self) -> None:
        self._parts += self._space
        self._space.clear()

    def take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return merged(parts) if len(parts) > 1 else parts


class Draft:
    """One call whose name may come after its arguments, which are held back then.

    certain: a name alone makes it a call; otherwise only a name and arguments do.
    """

    def __init__(self, output: Output, *, certain: bool) -> None:
        self.has_name = False
        self.has_arguments = False
        self._output = output
        self._certain = certain
        self._name = ""
        self._call: int | None = None
        self._held: list[str] = []
        self._is_empty = True

    def name(self, name: str) -> None:
        self._name = name
        self.has_name = True
        self._start()

    def begin_arguments(self) -> None:
        self.has_arguments = True
        self._start()

    def arguments(self, text: str) -> None:
        self._is_empty = False
        if self._call is None:
            self._held.append(text)
        else:
            self._output.arguments(self._call, text)

    def end(self) -> None:
        """A call without arguments has none: {}."""
        if self._call is not None and self._is_empty:
            self.arguments("{}")

    def _start(self) -> None:
        if self._call is None and self.has_name and (self._certain or self.has_arguments):
            self._call = self._output.start(self._name)
            for text in self._held:
                self._output.arguments(self._call, text)
            self._held.clear()
