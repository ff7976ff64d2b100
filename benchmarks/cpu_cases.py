"""What `make bench` asks of every server, and what it asks of ours beside the best of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.load import Workload

READY_AT_MOST_S = 6.0
WARM_UP_TOKENS = 8
STREAMS, CONTEXT = "streams-", "context-"  # names of what sweeps consist of begin with these


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    title: str
    work: Workload
    needed: float | None = None  # our tok/s over the best peer's, at least
    total: bool = False  # tok/s counts prompts too

    def seeded(self, turn: int) -> Workload:
        """The same for all servers in a round, and for no two rounds: or prefix caches would answer."""
        return replace(self.work, seed=f"{self.name} {turn}")

    def warm_up(self, turn: int) -> Workload:
        """As wide and with prompts as long, answers a few tokens long; prompts of its own."""
        work = replace(self.work, requests=self.work.concurrency, seed=f"{self.name} {turn} warm-up")
        return replace(work, output_len=min(WARM_UP_TOKENS, work.output_len))


WORKLOADS = (
    Case("c1", "1 stream", Workload(1, 5), needed=0.9),
    Case("c8", "8 streams", Workload(8, 32), needed=1.5),
    Case("c32", "32 streams", Workload(32, 96), needed=1.7),
    Case(
        "prefix",
        "32 streams, prefix of 1,000",
        Workload(32, 64, input_len=64, output_len=64, prefix_len=1000, chat=True),
        needed=1.7,
    ),
    Case(
        "prefill", "4 streams, 1,500 in, 16 out", Workload(4, 16, input_len=1500, output_len=16), needed=1.2, total=True
    ),
)
FREE = Case("c32", "32 streams", Workload(32, 96))
HELD = Case("schema", "32 streams, a JSON schema", Workload(32, 96, schema=True))


def chosen(names: Sequence[str]) -> list[Case]:
    """Raises ValueError with the first name that there is not."""
    known = {case.name: case for case in WORKLOADS}
    for name in names:
        if name not in known:
            raise ValueError(f"no workload {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names]


def streams_sweep(levels: Sequence[int]) -> list[Case]:
    return [Case(f"{STREAMS}{num}", f"sweep: streams {num}", Workload(num, max(4, 2 * num))) for num in levels]


def contexts_sweep(lengths: Sequence[int]) -> list[Case]:
    return [
        Case(f"{CONTEXT}{num}", f"sweep: context {num:,}", Workload(1, 3, input_len=num, output_len=32))
        for num in lengths
    ]
