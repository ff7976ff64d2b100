"""What the scheduler asks of the runner for one step, and what it gets back.

A decode `Work` carries no token id: the runner keeps each slot's last sampled token on its device. That is what lets
step N+1 be planned and launched while step N still runs.

gc=False: what is made for every sequence in every step need not be looked at by the collector, as it is in no cycle.
"""

from __future__ import annotations

import msgspec

from scheduler.types import FinishReason, SamplingParams


class Admit(msgspec.Struct, frozen=True, array_like=True):
    """A sequence takes a runner slot. After a preemption, or from an engine that is gone, `tokens` holds generated
    tokens too."""

    slot: int
    seq_id: int
    params: SamplingParams
    tokens: list[int]
    prompt_len: int  # tokens[prompt_len:] were generated before
    blocks: list[int]  # its block table so far: prefix hits, then fresh blocks for all of `tokens`
    start: int  # keys and values of tokens[:start] are already in `blocks`


class Work(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Compute positions start .. start+count-1 of the sequence in `slot`.

    sample: its last row's logits give the next token (a prompt chunk that does not end the tokens has sample=False).
    """

    slot: int
    start: int
    count: int
    new_blocks: list[int]  # appended to the slot's block table before the step
    sample: bool


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    """One step. The runner applies releases, then admits, then works, in this order.

    After a step that raised, a slot may be released that the runner has never admitted: that is not an error.
    """

    step: int
    releases: list[int]  # slots whose sequence is gone; nothing of them is read again
    admits: list[Admit]
    works: list[Work]

    @property
    def num_tokens(self) -> int:
        return sum([work.count for work in self.works])

    @property
    def num_samples(self) -> int:
        return sum([work.sample for work in self.works])


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probability (natural, of the unmodified distribution) of a sampled token, and the most likely ids."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]
    rank: int = 0  # of a prompt's token: 1 for the most likely


class PromptResult(msgspec.Struct, frozen=True, array_like=True):
    """What was asked about a prompt itself; told once, with its first token or its end."""

    logprobs: list[TokenLogprob] | None = None  # of tokens 1 .. prompt_len-1: the first has no predecessor
    embedding: bytes | None = None  # float32 little-endian [hidden_size]: mean of the last hidden states, normed


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """One token for each Work with sample=True, in the plan's order; logprobs only for those that asked."""

    tokens: list[int]
    logprobs: list[TokenLogprob | None]
    complete: list[int] = []  # indices into `tokens`: after these their grammar allows nothing more
    failed: list[int] = []  # indices into `tokens`: not to be used, for their grammar cannot be followed further
    prompts: dict[int, PromptResult] = {}  # by index into `tokens`: prompts whose computation this step finished


class Delays(msgspec.Struct, frozen=True, array_like=True):
    """What the time before a first token went into, but for its own turn and its own prompt, which have the rest."""

    grammar_s: float = 0.0  # until its grammar was compiled
    choice_s: float = 0.0  # until the first choice had computed the prompt
    rows_s: float = 0.0  # until a row of the batch was free
    blocks_s: float = 0.0  # until there were KV blocks
    others_prefill_s: float = 0.0  # of its steps after admission, for the prompts of others
    away_s: float = 0.0  # from preemptions until it was where it had been
    predicted_s: float | None = None  # from the queue to the first token, as it looked at submission; None: no idea
    fairness_s: float = 0.0  # in the queue, since another tenant's was let in in its turn


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a commit did to one sequence: new tokens, or its end, or both."""

    seq_id: int
    tokens: list[int]
    logprobs: list[TokenLogprob] | None
    finish: FinishReason | None
    first: bool = False  # these are the sequence's first generated tokens; only then the rest is set
    queued_s: float = 0.0  # from arrival to the first admission
    prefill_s: float = 0.0  # from there to this token
    cached_tokens: int = 0  # prompt tokens found in the prefix cache at the first admission
    prompt: PromptResult | None = None
    delays: Delays | None = None
    away_s: float | None = None  # with a later token: since a preemption
