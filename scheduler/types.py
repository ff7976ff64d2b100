"""The nouns that the scheduler, the engine and the gateway share. Plain data; nothing here acts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import msgspec

# How large a grammar may be: what the gateway checks is what the engine compiles.
MAX_GRAMMAR_SYMBOLS = 60_000  # llguidance counts them in 16 bits
MAX_LEXER_STATES = 50_000  # 1-2 kB each


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """How one sequence is sampled. The gateway has validated every field; the engine trusts them."""

    max_tokens: int  # 0: the prompt is computed, and nothing is generated
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy, lowest id wins a tie
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    presence: float = 0.0  # over generated tokens
    frequency: float = 0.0  # over generated tokens
    repetition: float = 1.0  # over prompt and generated tokens, multiplicative as in the CTRL paper
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_ids: tuple[int, ...] = ()  # end-of-sequence ids (unless ignored) and the request's own
    seed: int = 0  # 64 bits; noise is a pure function of (seed, position, token id)
    logprobs: int | None = None  # None: none; n: the chosen token's and the n most likely
    grammar: str | None = None  # in llguidance's form; the sequence ends "stop" where nothing may follow
    allowed_ids: tuple[int, ...] = ()  # empty: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that are never completed
    prompt_logprobs: int | None = None  # as logprobs, of the prompt's own tokens
    embed: bool = False  # the prompt's embedding is wanted

    @property
    def reads_prompt(self) -> bool:
        """Every position of the prompt is looked at as it is computed; so all are computed, hits or not."""
        return self.prompt_logprobs is not None or self.embed


FinishReason = Literal["stop", "length", "error", "grammar", "expired"]
"""stop: a stop id, or the end of its grammar. length: max_tokens, context or cache are full. error: its step failed.
grammar: its grammar cannot be followed further. expired: queued too long."""


class Phase(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, frozen=True)
class Limits:
    """Every number of the scheduling policy."""

    max_seqs: int  # rows of a step, and slots of the runner
    max_step_tokens: int  # token budget of a step, decode included
    max_model_len: int  # prompt + generated tokens of one sequence
    block_size: int
    max_waiting: int = 1024  # queued sequences; one more is refused
    max_waiting_tokens: int = 1 << 20  # queued prompt tokens; one more is refused
    watermark: float = 0.01  # share of all blocks kept free at admission, for running sequences to grow into
    mixed_prompt_tokens: int | None = None  # prompt tokens beside decodes in a step, unless a burst waits; None: no cap
    chunk_cap: int | None = None  # most prompt tokens of one sequence in a step while others wait; None: no cap
    prefix_caching: bool = True
    fairness: bool = True  # between tenants of one priority; or else first come, first served


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of one request, from submission to its last token. Owned and mutated by the scheduler only."""

    id: int
    params: SamplingParams
    tokens: list[int]  # prompt, then generated
    prompt_len: int
    arrived: float
    priority: int = 0  # lower runs sooner
    deadline: float | None = None  # of its admission, on the injected clock
    salt: bytes = b""  # keeps prefix-cache hits inside one tenant
    tenant: int = 0  # for whom it is; 0: nobody in particular
    phase: Phase = Phase.WAITING
    computed: int = 0  # keys and values valid for tokens[:computed] once work in flight commits
    in_flight: int = 0  # tokens that plans not yet committed will append (0 or 1 a plan)
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)  # of full blocks of `tokens`, extended as they fill
    slot: int = -1  # runner row, held from admission to release
    leader: int | None = None  # n > 1: wait until this sequence's prompt is computed and published
    admitted: float | None = None  # first admission, on the injected clock
    cached_at_admit: int = 0  # prompt tokens found in the prefix cache at first admission
    preemptions: int = 0
    finish: FinishReason | None = None
    # Set by the scheduler at submission:
    order: int = 0  # of submission; its place in the queue, also after a preemption
    max_len: int = 0  # of `tokens`; there it finishes "length"
    cacheable: bool = True  # its full blocks are published for others to share
    pending: int = 0  # what its answer is expected to cost its tenant
    generated_before: int = 0  # it was let in
    # And by a preemption:
    lost: int = 0  # tokens it had computed and gave up
    left_at: float | None = None  # until its next token
    away_s: float = 0.0  # from preemptions to the tokens after them, since the last token that was told
    # What its time until the first token went into; see scheduler.delays:
    enlisted: float = 0.0  # in the queue
    ready_at: float = 0.0  # there, and not for the sake of another choice
    waited_before: tuple[float, float] = (0.0, 0.0)
    waited: tuple[float, float] = (0.0, 0.0)  # for rows, for blocks
    overtaken_at: float | None = None  # another tenant's was let in in its turn: it waits for fairness since
    others_prefill_s: float = 0.0
    predicted_s: float | None = None  # until its first token, when it was submitted

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def takes_hits(self) -> bool:
        """Blocks that others have computed spare it work. Once its prompt is read and told, also where it asked."""
        return self.cacheable and (self.num_generated > 0 or not self.params.reads_prompt)


class Rejected(Exception):
    """A submission the scheduler refuses. `code` is stable: queue_full, too_long, never_fits."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
