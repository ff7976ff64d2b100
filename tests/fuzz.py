"""Requests made from our own /openapi.json, right, wrong and cut up, sent to the app over a stand-in for the engine.

python -m tests.fuzz --requests 20000 [--seed 1]
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import random
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import msgspec
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation.case import Case
from schemathesis.python.asgi import get_client

from gateway.http.app import create_app
from scheduler.protocol import Submit
from scheduler.types import Rejected
from tests.fixtures.fakes import EOS, MODEL, FakeEngine, Script, events, toy_services

SHARE = {True: 20, False: 1}  # of requests, by whether an operation takes a body
MODES = {"positive": 1, "negative": 1, "changed": 6, "mutated": 6}  # shares; the last two of drawn bodies, and cheap
CHEAP = ("changed", "mutated")
CHECKED = (
    *("status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("response_headers_conformance", "negative_data_rejection"),
)
KEPT = 50  # right bodies of an operation, to be changed
PIECES = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\ud800", b"\\u0000", b"\x00", b"\xff", b"null", b"true"),
    *(b"NaN", b"1e999", b"-1", b"0", b"1.5", b"9" * 30, b"[" * 2000, b'{"a":' * 2000, b'""', b"{}", b"[]"),
)
VALUES: tuple[Any, ...] = (
    10**400,
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, -(2**63) - 1, 1e308, 5e-324, "", "a", "\0", "\u2028", "a" * 5000),
    *(
        "\U0001f600" * 9,
        "1",
        "null",
        [],
        {},
        [[]],
        [None],
        {"": None},
        ["a", 1],
        [0] * 3000,
        {"type": "text"},
        {"a": {}},
    ),
    *({"type": "function"}, {"type": "object", "properties": {}}, {"$ref": "#"}, "(" * 500, "<|end|>", "a{1000}"),
)
ENDLESS = {"/dashboard/events"}
SPOKEN = (
    *('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', '{"name": "f", "parameters": {}}', "<tool_call>"),
    *("<think>so</think>", "[TOOL_CALLS]", "[f(a=1)]", "Grüße \U0001f600", "", "\n\n", "\x00", "\ufeff"),
)


@dataclass
class Report:
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)  # by kind, the first of each

    @property
    def num_requests(self) -> int:
        return self.statuses.total()

    def add(self, operation: str, status: int) -> None:
        self.statuses[operation, status] += 1

    def fail(self, kind: str, told: str) -> None:
        self.failures.setdefault(kind, told)

    def __str__(self) -> str:
        by_status = Counter[int]()
        for (_, status), count in self.statuses.items():
            by_status[status] += count
        told = ", ".join(f"{status}: {count}" for status, count in sorted(by_status.items()))
        return "\n\n".join([f"{self.num_requests} requests; {told}", *self.failures.values()])


def script(request: Submit, choice: int) -> Script:
    """What models say, and what they do not."""
    draw = random.Random(request.seeds[choice] ^ len(request.prompt))
    tokens = list(draw.choice(SPOKEN).encode()) + [draw.randrange(261) for _ in range(draw.randrange(6))]
    outputs = [[token] for token in tokens if token != EOS]
    return Script([*outputs, [EOS]], "stop") if draw.random() < 0.7 else Script(outputs or [[65]], "length")


def each_twentieth() -> Callable[[Submit], Exception | None]:
    """A queue that is full now and then."""
    numbers = itertools.count(1)
    return lambda request: Rejected("queue_full", "The queue is full.", 1.0) if next(numbers) % 20 == 0 else None


def whole_numbers(value: Any) -> Any:
    """1.0 is an integer to JSON Schema, and a float to us."""
    if isinstance(value, dict):
        return {name: whole_numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [whole_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def changed(value: Any, draw: random.Random) -> Any:
    """With a part of it replaced, left out or twice."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
        return draw.choice(VALUES)
    if isinstance(value, list):
        place = draw.randrange(len(value))
        parts = draw.choice(([changed(value[place], draw)], [], [value[place]] * 2))
        return [*value[:place], *parts, *value[place + 1 :]]
    name = draw.choice(list(value))
    if draw.random() < 0.1:
        return {key: each for key, each in value.items() if key != name}
    return {**value, name: changed(value[name], draw)}


def mutated(body: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 4)):
        start = draw.randint(0, len(body))
        end = min(len(body), start + draw.choice((0, 0, 1, 1, 2, 8, 64)))
        piece = draw.choice((*PIECES, b"", body[start:end] * 2, bytes([draw.randrange(256)])))
        body = body[:start] + piece + body[end:]
    return body


class Fuzz:
    def __init__(self, seed: int) -> None:
        self._engine = FakeEngine(script, refusal=each_twentieth())
        self._app = create_app(toy_services(self._engine, max_body_bytes=1 << 20))
        self._schema = schemathesis.openapi.from_asgi("/openapi.json", self._app)
        self._draw = random.Random(seed)
        self._kept: defaultdict[str, deque[Any]] = defaultdict(lambda: deque(maxlen=KEPT))
        load_all_checks()
        self._checks = CHECKS.get_by_names(CHECKED)
        self._readers = {each.label: reader(each.definition.raw, self._schema.raw_schema) for each in self.operations()}
        self.report = Report()

    def operations(self) -> list[Any]:
        found = [result.ok() for result in self._schema.get_all_operations()]
        return [each for each in found if each.path not in ENDLESS]

    def run(self, num_requests: int) -> Report:
        operations = self.operations()
        total = sum(SHARE[bool(each.body)] for each in operations)
        for operation in operations:
            share = num_requests * SHARE[bool(operation.body)] / total
            if operation.body:
                self._fuzz_body(operation, share / sum(MODES.values()))
            else:
                self._draw_cases(operation, GenerationMode.POSITIVE, math.ceil(share))
        while self.report.num_requests < num_requests:
            self._change(self._draw.choice([each for each in operations if each.body]), self._draw.choice(CHEAP))
        return self.report

    def _fuzz_body(self, operation: Any, unit: float) -> None:
        if not self._kept[body_type(operation)]:  # to draw is slow: the same bodies go to several paths
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                self._draw_cases(operation, mode, math.ceil(MODES[mode.value] * unit))
        for mode in CHEAP:
            for _ in range(math.ceil(MODES[mode] * unit)):
                self._change(operation, mode)

    def _draw_cases(self, operation: Any, mode: GenerationMode, count: int) -> None:
        settings = hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        @hypothesis.seed(self._draw.randrange(1 << 32))
        @settings
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def examples(case: Case) -> None:
            if mode is GenerationMode.POSITIVE and operation.body:
                case.body = whole_numbers(case.body)
                self._kept[body_type(operation)].append(case.body)
            self._send(case, mode.value)

        with suppress(Unsatisfiable):  # where nothing about an operation can be wrong
            examples()

    def _change(self, operation: Any, mode: str) -> None:
        draw = self._draw
        body = draw.choice(self._kept[body_type(operation)])
        if mode == "mutated":
            sent = mutated(msgspec.json.encode(body), draw)
        else:
            sent = msgspec.json.encode(changed(body, draw) if draw.random() < 0.8 else body)
        self._send(operation.Case(body=sent, media_type="application/json"), mode)

    def _send(self, case: Case, mode: str) -> None:
        label = case.operation.label
        try:
            answer = case.call()
        except Exception as error:
            self.report.add(label, 0)
            return self.report.fail(f"{label} {error!r:.80}", f"{label}, {mode}: {error!r}\n{case.as_curl_command()}")
        self.report.add(label, answer.status_code)
        for problem in self._problems(case, answer, mode):
            kind = f"{label} {answer.status_code} {problem.splitlines()[0][:60]}"
            self.report.fail(kind, f"{label}, {mode}: {problem[:1500]}\n{case.as_curl_command()[:3000]}")
        return None

    def _problems(self, case: Case, answer: Any, mode: str) -> Iterator[str]:
        if answer.status_code >= 500 and answer.status_code != 501:
            yield f"{answer.status_code} {answer.text}"
        checks = [each for each in self._checks if mode == "negative" or each.__name__ != "negative_data_rejection"]
        try:
            case.validate_response(answer, checks=checks)
        except FailureGroup as group:
            yield from (f"{type(each).__name__} {each.message}" for each in group.exceptions)
        except Failure as failure:
            yield f"{type(failure).__name__} {failure.message}"
        if answer.headers.get("content-type", [""])[0].startswith("text/event-stream"):
            for event in events(answer.content):
                if event != "[DONE]" and (error := next(self._readers[case.operation.label](event), None)):
                    yield f"event {error.message[:300]} in {event}"

    def unserved(self) -> list[str]:
        """What the server answers otherwise than it should after all that, from an engine that refuses nothing more."""
        self._engine.refusal = lambda request: None
        client = get_client(self._app)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "seed": 1}
        answers = [client.post("/v1/chat/completions", json={**body, "stream": stream}) for stream in (False, True)]
        answers.append(client.get("/ready"))
        return [f"{each.request.url} {each.status_code} {each.text}" for each in answers if each.status_code != 200]


def body_type(operation: Any) -> str:
    reference: str = operation.definition.raw["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return reference


def reader(operation: dict[str, Any], document: dict[str, Any]) -> Callable[[Any], Iterator[Any]]:
    """What is wrong with an event of a stream."""
    content = operation["responses"]["200"]["content"].get("text/event-stream")
    data = {"contentSchema": {"not": {}}} if content is None else content["schema"]["properties"]["data"]
    schema = data.get("anyOf", [data])[0]["contentSchema"]
    errors: Callable[[Any], Iterator[Any]] = Draft202012Validator(
        {**schema, "components": document["components"]}
    ).iter_errors
    return errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    started = time.monotonic()
    fuzz = Fuzz(arguments.seed)
    report = fuzz.run(arguments.requests)
    unserved = fuzz.unserved()
    print(report)
    print(
        f"{time.monotonic() - started:.0f} s; the server {'SERVES NO MORE' if unserved else 'still serves'}", *unserved
    )
    return 1 if unserved or report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
