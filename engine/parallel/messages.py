"""What rank 0 tells the others: the calls of its own executor, in their order, and what only its host knows.

    rank 0   launch(5)  launch(6)  finish()  launch(7)  finish()  ...
    others   the same calls, told in frames of 4 bytes little-endian length + msgpack, as between gateway and engine

A decode step is some tens of bytes, and a finish one. Tokens that a device has drawn never travel: all ranks draw the
same from the same logits. Those that the host of rank 0 has drawn come with the next launch.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from scheduler.plan import Admit, StepPlan
from scheduler.protocol import LENGTH_BYTES, EngineConfig
from scheduler.types import SamplingParams

Kind = Literal["model", "memory", "internal"]  # as in Fatal
Drawn = list[tuple[int, int]]  # slot, token


class Seat(msgspec.Struct, frozen=True):
    """A rank's place in its group."""

    rank: int = 0
    num_ranks: int = 1
    store: str = ""  # path of the file by which they find each other


SOLE = Seat()


class RankSetup(msgspec.Struct, frozen=True):
    """All that a rank is told at its start. JSON on its standard input, which stays open as long as rank 0 lives."""

    config: EngineConfig
    seat: Seat
    socket: int  # file descriptor


class Launch(msgspec.Struct, frozen=True, array_like=True, tag="launch"):
    plan: StepPlan
    drawn: Drawn  # in the step that was finished last


class Finish(msgspec.Struct, frozen=True, array_like=True, tag="finish"):
    """The oldest."""


class Alive(msgspec.Struct, frozen=True, array_like=True, tag="alive"):
    """Once a second, from a rank that is ready."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """A rank's last words."""

    kind: Kind
    message: str


to_rank_decoder = msgspec.msgpack.Decoder(Launch | Finish)
from_rank_decoder = msgspec.msgpack.Decoder(Alive | Failed)
_encoder = msgspec.msgpack.Encoder()


def frame(message: Launch | Finish | Alive | Failed) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def without_host(plan: StepPlan) -> StepPlan:
    """As ranks beside the first need it: what only the host of rank 0 sees to is left out."""
    if not plan.admits:
        return plan
    return msgspec.structs.replace(plan, admits=[_plain(admit) for admit in plan.admits])


def _plain(admit: Admit) -> Admit:
    params = admit.params
    kept = SamplingParams(
        params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.seed,
        prompt_logprobs=params.prompt_logprobs,
        embed=params.embed,
    )
    return msgspec.structs.replace(admit, params=kept)
