"""nanochat's calculator: what its models may compute between <|python_start|> and <|python_end|>.

Sums, differences, products, quotients (also //) of numbers, and how often one text occurs in another:

    12 * (3 + 4.5)        'strawberry'.count('r')

An evaluator of its own for this little language, whose results are Python's. It never runs Python; its time and memory
are bounded by the length of the expression and the depth of its parentheses, which are limited.
"""

from __future__ import annotations

import re

MAX_CHARS = 1_000
MAX_DEPTH = 50
_TOKEN = re.compile(
    r"(?P<number>\d+\.\d*|\.\d+|\d+)|(?P<text>'[^'\\\n]*'|\"[^\"\\\n]*\")|(?P<sign>//|\*\*|\.\s*count\s*\(|[-+*/()])"
)
_LETTERS_AFTER_NUMBER = re.compile(r"[\w.]")

Value = int | float | str


class NotUnderstood(ValueError):
    """The text is no such expression, or has no value."""


def calculate(text: str) -> str | None:
    """The value as Python prints it. None: the text is not understood. Commas in it are left out, as in 1,000."""
    if len(text) > MAX_CHARS:
        return None
    try:
        value = _Reader(text.replace(",", "")).result()
        return None if isinstance(value, str) else str(value)
    except (NotUnderstood, ArithmeticError):
        return None


class _Reader:
    """By recursive descent: a sum of products of signed operands. Recursion is for parentheses only."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0

    def result(self) -> Value:
        value = self._sum()
        if self._at < len(self._tokens):
            raise NotUnderstood
        return value

    def _next(self, *wanted: str) -> str | None:
        """The token here, and past it, if it is one of these."""
        token = self._tokens[self._at] if self._at < len(self._tokens) else ""
        if token not in wanted or not token:
            return None
        self._at += 1
        return token

    def _sum(self) -> Value:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotUnderstood
        value = self._product()
        while operator := self._next("+", "-"):
            value = _computed(operator, value, self._product())
        self._depth -= 1
        return value

    def _product(self) -> Value:
        value = self._signed()
        while operator := self._next("*", "/", "//"):
            value = _computed(operator, value, self._signed())
        return value

    def _signed(self) -> Value:
        negative, is_signed = False, False
        while sign := self._next("+", "-"):
            negative, is_signed = negative != (sign == "-"), True
        value = self._operand()
        return _computed("*", value, -1 if negative else 1) if is_signed else value

    def _operand(self) -> Value:
        if self._next("("):
            value = self._sum()
            self._close()
        else:
            value = self._literal()
        while self._next(".count("):
            value = _count(value, self._sum())
            self._close()
        return value

    def _close(self) -> None:
        if not self._next(")"):
            raise NotUnderstood

    def _literal(self) -> Value:
        if self._at == len(self._tokens):
            raise NotUnderstood
        token = self._tokens[self._at]
        self._at += 1
        if token[0] in "'\"":
            return token[1:-1] + self._more_text()
        if token[0] not in "0123456789." or token == ".count(":
            raise NotUnderstood
        if "." in token:
            return float(token)
        if token[0] == "0" and token.strip("0"):
            raise NotUnderstood  # 007 is no number in Python
        return int(token)

    def _more_text(self) -> str:
        """Texts side by side are one."""
        text = ""
        while self._at < len(self._tokens) and self._tokens[self._at][0] in "'\"":
            text += self._tokens[self._at][1:-1]
            self._at += 1
        return text


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text):
        if text[at] == " ":
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotUnderstood
        at = match.end()
        if match["number"] and _LETTERS_AFTER_NUMBER.match(text, at):
            raise NotUnderstood
        found.append(".count(" if match[0].startswith(".") and match["sign"] else match[0])
    return found


def _computed(operator: str, left: Value, right: Value) -> Value:
    if isinstance(left, str) or isinstance(right, str):
        raise NotUnderstood
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left / right if operator == "/" else left // right


def _count(text: Value, part: Value) -> int:
    if not isinstance(text, str) or not isinstance(part, str):
        raise NotUnderstood
    return text.count(part)
