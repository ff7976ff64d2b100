"""What is asked: prompts of words drawn by a seed, so long, for answers so long."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.arrivals import Load, Open, Replay

PREPARED_BYTES = (
    32 << 20
)  # of requests that are made before the clock runs, within a second or two; more are made on the way


@dataclass(frozen=True, slots=True)
class Span:
    """Every length from low to high is as likely."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low}:{self.high}"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    body: bytes
    output_len: int
    at_s: float = 0.0  # after the first one; of no meaning in a closed loop


@dataclass(frozen=True, slots=True)
class Workload:
    chat: bool
    input_len: Span  # tokens of a prompt, without those that a chat template adds
    output_len: Span
    shared_prefix: int = 0  # tokens; in chats the system message
    ignore_eos: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)  # merged into each request; None takes a field out


@dataclass(frozen=True, slots=True)
class Author:
    """Writes requests to one server. Lengths and moments depend on the seed alone; words on `name` as well, so that
    two names at one server do not answer each other's prompts from its cache."""

    work: Workload
    model: str
    words: Sequence[str]  # one token each
    seed: int
    name: str

    def asks(self, load: Load, num: int, part: str) -> Iterator[Ask]:
        """`part`: one of the run's, which has prompts of its own."""
        shape = random.Random(f"{self.seed}/{part}/shape")
        words = random.Random(f"{self.seed}/{part}/{self.name}")
        prefix = self._text(random.Random(f"{self.seed}/{self.name}"), self.work.shared_prefix)
        made = (
            Ask(self._body(prefix, self._text(words, input_len), output_len), output_len, at_s)
            for at_s, input_len, output_len in self._shapes(load, num, shape)
        )
        return _ahead(made)

    def _shapes(self, load: Load, num: int, rng: random.Random) -> Iterable[tuple[float, int, int]]:
        """(moment, input_len, output_len)"""
        if isinstance(load, Replay):
            lengths = ((entry.input_len, entry.output_len) for entry in itertools.islice(load.entries, num))
            return ((at, *both) for at, both in zip(load.moments(num), lengths, strict=True))
        moments: Iterable[float] = itertools.repeat(0.0, num)
        if isinstance(load, Open):
            moments = load.moments(num, random.Random(rng.random()))
        return ((at, self.work.input_len.draw(rng), self.work.output_len.draw(rng)) for at in moments)

    def _text(self, rng: random.Random, num: int) -> str:
        return "".join(" " + word for word in rng.choices(self.words, k=num))

    def _body(self, prefix: str, own: str, output_len: int) -> bytes:
        prompt: dict[str, Any] = {"prompt": prefix + own}
        if self.work.chat:
            system = [{"role": "system", "content": prefix.strip()}] if prefix else []
            prompt = {"messages": [*system, {"role": "user", "content": own.strip()}]}
        body = {
            "model": self.model,
            **prompt,
            "max_tokens": output_len,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self.work.ignore_eos else {}),
            **self.work.extra,
        }
        return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


def _ahead(made: Iterator[Ask]) -> Iterator[Ask]:
    """The client shares the cores with the server often, so requests are written before the clock runs."""
    prepared, held = list[Ask](), 0
    for ask in made:
        prepared.append(ask)
        held += len(ask.body)
        if held > PREPARED_BYTES:
            break
    return itertools.chain(prepared, made)
