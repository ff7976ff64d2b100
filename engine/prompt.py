"""What a request asks about its prompt itself: log-probabilities of its tokens, or its mean hidden state.

Prompts come in chunks, so a reader gathers until the chunk that ends the prompt. Rows that ask nothing have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scheduler.plan import Admit, PromptResult, TokenLogprob, Work

HEAD_ROWS = 256  # whose logits are held at once


class Head(Protocol):
    def norm(self, x: Tensor) -> Tensor:
        """The final norm. x: [rows, hidden]"""

    def head(self, x: Tensor) -> Tensor:
        """Logits, float32 [rows, vocab], of hidden states before the final norm."""


class Scores(NamedTuple):
    """Of consecutive prompt tokens, each given all before it."""

    logprobs: Tensor  # [rows]
    ranks: Tensor  # [rows]: how many tokens are likelier, plus one
    top_logprobs: Tensor  # [rows, num_top]
    top_ids: Tensor  # [rows, num_top]


class PromptReader:
    """Of one row, from its admission to the end of its prompt."""

    def __init__(self, admit: Admit, model: Head) -> None:
        self._model = model
        self._prompt = admit.tokens
        self._num_top = admit.params.prompt_logprobs
        self._scores: list[Scores] = []
        self._embed = admit.params.embed
        self._sum: Tensor | None = None  # [hidden] float32
        self._num_read = 0

    def read(self, start: int, hidden: Tensor) -> None:
        """hidden: [count, hidden], before the final norm, of the prompt's positions from `start` on."""
        if start != self._num_read:
            raise RuntimeError(f"a prompt was read up to {self._num_read}, and goes on at {start}")
        self._num_read += len(hidden)
        if self._num_top is not None:
            targets = torch.tensor(self._prompt[start + 1 : self._num_read + 1], device=hidden.device)
            for at in range(0, len(targets), HEAD_ROWS):
                ids = targets[at : at + HEAD_ROWS]
                self._scores.append(score(self._model.head(hidden[at : at + len(ids)]), ids, self._num_top))
        if self._embed:
            chunk = self._model.norm(hidden).sum(dim=0, dtype=torch.float32)
            self._sum = chunk if self._sum is None else self._sum + chunk

    def result(self) -> PromptResult:
        """Waits for the device."""
        logprobs = None if self._num_top is None else [told for scores in self._scores for told in _told(scores)]
        mean = None if self._sum is None else (self._sum / self._num_read).cpu().numpy().astype("<f4").tobytes()
        return PromptResult(logprobs, mean)


class PromptReaders:
    """Those of all slots."""

    def __init__(self, model: Head) -> None:
        self._model = model
        self._readers: dict[int, PromptReader] = {}

    def admit(self, admit: Admit) -> None:
        """After a preemption a prompt is read anew, unless its first token, and with it the result, is out."""
        self.release(admit.slot)
        if admit.params.reads_prompt and len(admit.tokens) == admit.prompt_len:
            self._readers[admit.slot] = PromptReader(admit, self._model)

    def release(self, slot: int) -> None:
        self._readers.pop(slot, None)

    def reading(self, works: list[Work]) -> bool:
        """Whether hidden states of all rows are needed."""
        return any(work.slot in self._readers for work in works)

    def read(self, works: list[Work], hidden: Tensor) -> dict[int, PromptResult]:
        """Results of the prompts that end here, by index among the works that sample. hidden: [tokens, hidden]"""
        results: dict[int, PromptResult] = {}
        at = num_samples = 0
        for work in works if self._readers else ():
            reader = self._readers.get(work.slot)
            if reader is not None:
                reader.read(work.start, hidden[at : at + work.count])
                if work.sample:
                    results[num_samples] = reader.result()
                    self.release(work.slot)
            at += work.count
            num_samples += work.sample
        return results


def score(logits: Tensor, ids: Tensor, num_top: int) -> Scores:
    """logits: [rows, vocab] float32; ids: [rows]"""
    logprobs = logits.log_softmax(dim=1)
    chosen = logprobs.gather(1, ids[:, None])  # [rows, 1]
    ranks = (logprobs > chosen).sum(dim=1) + 1
    top = logprobs.topk(num_top, dim=1)
    return Scores(chosen[:, 0], ranks, top.values, top.indices)


def _told(scores: Scores) -> Iterator[TokenLogprob]:
    logprobs, ranks, tops, ids = (tensor.tolist() for tensor in scores)  # the wait, once a prompt
    return map(TokenLogprob, logprobs, ids, tops, ranks)
