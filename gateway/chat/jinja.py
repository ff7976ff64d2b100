"""Chat templates of model files: rendered in a sandbox, encoded so that no message can spell a control token.

Encoding the rendered text would turn a literal in a message into the control token, just as one of the template. So a
mark, one character that occurs nowhere else, is put into every place of a message where a literal is spelled or could
come to be spelled beside other text. A marked literal is not found; the marks are gone before the text is encoded.
The template still sees its strings, and may cut, strip and compare them; where nothing needs a mark, nothing is done,
and the ids are those of rendering and encoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice, pairwise
from typing import Any, NoReturn, Protocol

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.errors import ApiError, ModelError
from gateway.timeline.laps import lap
from gateway.tokenizer.base import Tokenizer

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_RENDERED_CHARACTERS = 1 << 25
_MAX_REPEATED = 1 << 20  # length of a repeated string or list, and bits of a power
_MARKS = [chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE))]  # no characters, then private ones
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_WORD = re.compile(r"\w+")
_PART_PROBE = "headrace-part"
_TURN_PROBE = "headrace-turn"


class MarkedTokenizer(Tokenizer, Protocol):
    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Ids of `text` with its control tokens, but for literals with `mark` inside. Marks are no part of the text."""


class JinjaTemplate:
    """A chat template with its tokenizer. `named_tokens` are its variables bos_token, eos_token and so on."""

    def __init__(
        self,
        source: str,
        tokenizer: MarkedTokenizer,
        named_tokens: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise ModelError(f"the chat template has {len(source)} characters, and may have {MAX_TEMPLATE_CHARACTERS}")
        try:
            self._template = _environment(now).from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"the chat template cannot be read: {_one_line(error)}") from error
        self.source = source
        read = jinja2.meta.find_undeclared_variables(_environment(now).parse(source))
        self.variables = frozenset(read) - named_tokens.keys()  # what a request may set
        self._tokenizer = tokenizer
        self._named_tokens = dict(named_tokens)
        self._marker = _Marker(source, list(tokenizer.special_ids))
        self._takes_parts = self._renders_parts()

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        given = {**(variables or {}), "messages": [self._plain(message) for message in messages]}
        mark, end = self._free_marks(given)
        marked = self._marked(given, mark)
        if continue_final:
            marked["messages"][-1]["content"] += end
        rendered = self.render(marked, add_generation_prompt=add_generation_prompt)
        if continue_final:
            rendered = _up_to(rendered, end)
        with lap("tokenize"):
            if mark in rendered:
                return self._tokenizer.encode_marked(rendered, mark)
            return self._tokenizer.encode(rendered, specials=True)

    def turn_end_id(self) -> int | None:
        """The control token that the template puts right after an answer, if it does."""
        probe = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _TURN_PROBE}]
        try:
            rendered = self.render({"messages": probe}, add_generation_prompt=False)
        except ApiError:
            return None
        _, found, after = rendered.rpartition(_TURN_PROBE)
        literals = [literal for literal in self._tokenizer.special_ids if after.startswith(literal)]
        return self._tokenizer.special_ids[max(literals, key=len)] if found and literals else None

    def render(self, given: Mapping[str, Any], *, add_generation_prompt: bool) -> str:
        """The prompt as text. Raises ApiError (400) where the template does not take what is given."""
        variables = {"tools": None, "documents": None, **given, **self._named_tokens}
        rendered: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(**variables, add_generation_prompt=add_generation_prompt):
                rendered.append(piece)
                size += len(piece)
                if size > MAX_RENDERED_CHARACTERS:
                    raise SecurityError(f"more than {MAX_RENDERED_CHARACTERS} characters of prompt")
        except Exception as error:  # a template is a program: what it raises is its answer to these messages
            message = f"The chat template does not take these messages: {_one_line(error)}"
            raise ApiError(400, message, param="messages", code="chat_template_error") from error
        return "".join(rendered)

    def _marked(self, value: Any, mark: str) -> Any:
        """A deep copy in plain types, marked."""
        if isinstance(value, str):
            return self._marker.mark(value, mark)
        if isinstance(value, Mapping):
            return {self._marker.mark_key(key, mark): self._marked(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(item, mark) for item in value]
        return value

    def _plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Lists of text parts become one text, unless the template reads parts itself."""
        plain = dict(message)
        content = plain.get("content")
        if isinstance(content, list) and not self._takes_parts and all(map(_is_text_part, content)):
            plain["content"] = "\n".join(part["text"] for part in content)
        return plain

    def _renders_parts(self) -> bool:
        probe = [{"role": "user", "content": [{"type": "text", "text": _PART_PROBE}]}]
        try:
            rendered = self.render({"messages": probe}, add_generation_prompt=False)
        except ApiError:
            return False
        return _PART_PROBE in rendered and f"'{_PART_PROBE}'" not in rendered  # quoted: the list itself was printed

    def _free_marks(self, given: Mapping[str, Any]) -> list[str]:
        """Two characters that occur nowhere."""
        used = set(self.source).union(*_strings(given))
        free = list(islice((mark for mark in _MARKS if mark not in used), 2))
        if len(free) < 2:
            raise ApiError(400, "The messages use every private character.", param="messages")
        return free


class _Marker:
    """Where a message's text needs a mark, so that no literal of a control token can be made of it."""

    def __init__(self, source: str, literals: Sequence[str]) -> None:
        rest_of_template = _without(source, literals)
        telling = {_telling_beginning(literal, rest_of_template) for literal in literals}
        self._telling = re.compile("(?=" + ("|".join(map(re.escape, telling)) or "(?!)") + ")")
        self._beginnings = {literal[:end] for literal in literals for end in range(1, len(literal) + 1)}
        self._endings = {literal[start:] for literal in literals for start in range(1, len(literal) - 1)}
        self._longest = max(map(len, literals), default=0)
        self._literals = literals

    def mark(self, text: str, mark: str) -> str:
        stripped = text.strip()
        if not stripped or stripped in _ROLES:
            return text
        start = text.index(stripped)
        places = sorted({start + place for place in self._places(stripped)})
        return mark.join(text[begin:end] for begin, end in pairwise([0, *places, len(text)]))

    def mark_key(self, key: str, mark: str) -> str:
        return key if _WORD.fullmatch(key) else self.mark(key, mark)

    def _places(self, text: str) -> Iterator[int]:
        """Positions to put a mark at: within what is or begins like a literal; at the end, if a literal may begin
        there; at the start, within what may end one, unless that is a word, such as the text of <jupyter_text>."""
        yield from (match.start() + 1 for match in self._telling.finditer(text))
        lengths = range(1, min(self._longest, len(text)) + 1)
        if any(text[-length:] in self._beginnings for length in lengths):
            yield len(text)
        starts_within = any(text[:length] in self._endings for length in lengths) or self._is_inside_literal(text)
        if starts_within and not _WORD.fullmatch(text):
            yield 1

    def _is_inside_literal(self, text: str) -> bool:
        return 1 < len(text) <= self._longest and any(text in literal for literal in self._literals)


def _up_to(rendered: str, end: str) -> str:
    before, found, _ = rendered.rpartition(end)
    if not found:
        message = "The chat template leaves out the end of the last message, so it cannot be continued."
        raise ApiError(400, message, param="continue_final_message", code="chat_template_error")
    return before.replace(end, "")


def _without(source: str, literals: Iterable[str]) -> str:
    for literal in sorted(literals, key=len, reverse=True):
        source = source.replace(literal, "\n")
    return source


def _telling_beginning(literal: str, rest_of_template: str) -> str:
    """The shortest beginning of a literal that the template does not look for otherwise, so that a mark in it cannot
    change what the template does: with <tool_call> a control token, <think> must stay as it is."""
    lengths = range(min(2, len(literal)), len(literal))
    return next((literal[:length] for length in lengths if literal[:length] not in rest_of_template), literal)


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


# the environment that templates are written for


class _GenerationBlock(Extension):
    """{% generation %} marks what a model was trained on; for a prompt it is only its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Bounds what one expression can allocate."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            too_much = left.bit_length() * right > _MAX_REPEATED
        else:
            too_much = operator == "*" and any(_repeats_too_much(*pair) for pair in ((left, right), (right, left)))
        if too_much:
            raise SecurityError(f"'{operator}' would make too large a value")
        return super().call_binop(context, operator, left, right)


def _repeats_too_much(value: Any, times: Any) -> bool:
    return isinstance(value, str | list | tuple) and isinstance(times, int) and len(value) * times > _MAX_REPEATED


def _environment(now: Callable[[], datetime]) -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
