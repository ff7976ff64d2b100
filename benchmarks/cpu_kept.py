"""What an earlier `make bench` kept, to go on from: rounds in which every server was visited, on the same machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cpu_servers import OURS
from benchmarks.cpu_table import Visit
from benchmarks.load import Figures


class Another(ValueError):
    """What was kept is of another machine, of other servers or of other workloads."""


@dataclass(frozen=True, slots=True)
class Kept:
    visits: list[Visit] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(
        default_factory=list
    )  # when each was measured, with which code, how many rounds

    @property
    def rounds(self) -> int:
        return max((visit.turn for visit in self.visits), default=0)


def kept(path: Path, head: Mapping[str, Any], cases: Sequence[str]) -> Kept:
    """Of whole rounds; nothing where there is no such file. Our own code may be another by now: parts say which it was.

    Raises Another.
    """
    if not path.exists():
        return Kept()
    told = json.loads(path.read_text())
    mine, before = _same(head), _same(told)
    for name in mine:
        if mine[name] != before[name]:
            raise Another(f"{path.name} has {name} {before[name]}, and here it is {mine[name]}")
    visits = [_visit(each) for each in told["visits"]]
    whole = _whole_rounds(visits, sorted(told["versions"]))
    visits = [visit for visit in visits if visit.turn <= whole]
    if any(not visit.error and [*visit.runs] != [*cases] for visit in visits):
        raise Another(f"{path.name} has other workloads")
    parts = told.get("parts", [])[:-1]  # the last is that file's own run, whose last round may not be whole
    if rounds := whole - sum(part["rounds"] for part in parts):
        parts.append({**part_of(told), "rounds": rounds})
    return Kept(visits, parts)


def part_of(head: Mapping[str, Any]) -> dict[str, Any]:
    return {"date": head["date"], OURS: head["versions"][OURS], "load_before": head["machine"]["load_before"]}


def _same(head: Mapping[str, Any]) -> dict[str, Any]:
    """What must not differ between parts of one result."""
    machine = {name: value for name, value in head["machine"].items() if name in ("processor", "features", "cores")}
    how = {name: head.get(name, other) for name, other in (("flags", []), ("context_length", 2048))}
    return {**machine, **how, "servers": {name: version for name, version in head["versions"].items() if name != OURS}}


def _visit(told: Mapping[str, Any]) -> Visit:
    return Visit(**{**told, "runs": {name: Figures(**run) for name, run in told["runs"].items()}})


def _whole_rounds(visits: Sequence[Visit], servers: Sequence[str]) -> int:
    turn = 0
    while sorted(visit.server for visit in visits if visit.turn == turn + 1) == [*servers]:
        turn += 1
    return turn
