"""From logits to tokens: penalties, biases and grammars, filters, then a draw whose noise depends on seed and position
only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine import noise
from engine.constraint import Mask
from engine.rows import Row
from scheduler.plan import StepResult, TokenLogprob
from scheduler.types import SamplingParams

NUCLEUS = 256  # candidates first looked at for top_p and min_p; the whole vocabulary where they do not suffice


def sample(logits: Tensor, rows: Sequence[Row], mask: Mask | None = None) -> StepResult:
    """One token for each row. logits: [rows, vocab] float32, changed in place."""
    logprobs = _logprobs_before(logits, rows)
    for index, row in enumerate(rows):
        if needs_processing(row):
            logits[index] = process(logits[index], row)
    if mask is not None:
        mask.apply(logits)
    tokens = _choose(logits, rows).tolist()  # the step's one wait for the device
    return StepResult(tokens, [_told(logprobs, index, tokens[index], rows) for index in range(len(rows))])


def needs_processing(row: Row) -> bool:
    return row.penalties is not None or row.bias is not None or row.exclusions is not None


def process(logits: Tensor, row: Row) -> Tensor:
    """Penalties, then logit_bias, then what the request rules out. logits: [vocab]."""
    if row.penalties is not None:
        logits = row.penalties.apply(logits, row.params)
    if row.bias is not None:
        logits = logits.index_add(0, *row.bias)
    if row.exclusions is not None:
        logits = row.exclusions.apply(logits, row.generated)
    return logits


def _choose(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """[rows] int64. Greedy rows, plain draws and filtered draws each go together."""
    params = [row.params for row in rows]
    chosen = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    groups = {
        _argmax: [i for i, p in enumerate(params) if p.temperature == 0],
        _draw_plain: [i for i, p in enumerate(params) if p.temperature > 0 and not is_filtered(p)],
        _draw_filtered: [i for i, p in enumerate(params) if p.temperature > 0 and is_filtered(p)],
    }
    for choose, members in groups.items():
        if len(members) == len(rows):
            return choose(logits, rows)
        if members:
            index = torch.tensor(members, device=logits.device)
            chosen[index] = choose(logits[index], [rows[i] for i in members])
    return chosen


def is_filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _argmax(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The first of equals: the lowest id."""
    if logits.device.type == "cpu":  # numpy compares many at once, torch one after the other
        return torch.from_numpy(logits.numpy().argmax(axis=1))
    return logits.argmax(dim=1)


def _draw_plain(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    return noise.draw(logits, _temperatures(rows, logits.device), _keys(rows, logits.device))


def _draw_filtered(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Draws among the ids that top_k, top_p and min_p leave, each looked at after temperature, in this order."""
    scaled = logits / _temperatures(rows, logits.device)[:, None]
    width = _candidates_needed(scaled, [row.params for row in rows])
    values, ids = _sorted_top(scaled, width)
    kept = _filter(values, scaled.logsumexp(dim=1), [row.params for row in rows])
    scores = torch.where(kept, values + noise.gumbel(ids, _keys(rows, logits.device)), float("-inf"))
    return _lowest_id_of_best(scores, ids)


def _candidates_needed(scaled: Tensor, params: Sequence[SamplingParams]) -> int:
    """How many of the most likely ids the filters of all rows could keep."""
    vocab = scaled.shape[1]
    width = max((p.top_k if p.top_k > 0 else NUCLEUS) for p in params)
    if width >= vocab:
        return vocab
    open_rows = [i for i, p in enumerate(params) if p.top_k == 0]
    if not open_rows:
        return width
    rows = scaled[torch.tensor(open_rows, device=scaled.device)]
    probability = (rows.topk(width, dim=1).values - rows.logsumexp(dim=1, keepdim=True)).exp()
    nucleus, least = probability.sum(dim=1).tolist(), (probability[:, -1] / probability[:, 0]).tolist()
    covered = [
        nucleus[j] > params[i].top_p + 1e-5 or (params[i].min_p > 0 and least[j] < params[i].min_p)
        for j, i in enumerate(open_rows)
    ]
    return width if all(covered) else vocab


def _sorted_top(scaled: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Values and ids of the `width` largest of each row, by falling value; equal values by rising id."""
    if width == scaled.shape[1]:
        values, ids = scaled.sort(dim=1, descending=True, stable=True)
        return values, ids
    values, ids = scaled.topk(width, dim=1)
    by_id = ids.argsort(dim=1)
    order = values.gather(1, by_id).argsort(dim=1, descending=True, stable=True)
    by_value = by_id.gather(1, order)
    return values.gather(1, by_value), ids.gather(1, by_value)


def _filter(values: Tensor, total: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """[rows, width] bool: which stay. values: scaled logits, sorted; total: logsumexp over the whole vocabulary."""
    device, width = values.device, values.shape[1]
    top_k = torch.tensor([p.top_k or width for p in params], device=device)[:, None]
    top_p = torch.tensor([p.top_p for p in params], device=device)[:, None]
    min_p = torch.tensor([p.min_p for p in params], device=device)[:, None]
    limited = torch.tensor([p.top_k > 0 for p in params], device=device)[:, None]
    kept = torch.arange(width, device=device)[None] < top_k
    among_k = torch.where(kept, values, float("-inf")).logsumexp(dim=1, keepdim=True)
    probability = (values - torch.where(limited, among_k, total[:, None])).exp()
    before = probability.cumsum(dim=1) - probability  # mass of the likelier ones; the first always stays
    kept = kept & ((before < top_p) | (top_p >= 1.0))
    return kept & (probability >= min_p * probability[:, :1])


def _lowest_id_of_best(scores: Tensor, ids: Tensor) -> Tensor:
    best = scores == scores.max(dim=1, keepdim=True).values
    return torch.where(best, ids, torch.iinfo(torch.int64).max).min(dim=1).values


def _temperatures(rows: Sequence[Row], device: torch.device) -> Tensor:
    return torch.tensor([row.params.temperature for row in rows], dtype=torch.float32, device=device)


def _keys(rows: Sequence[Row], device: torch.device) -> Tensor:
    return noise.row_keys([row.params.seed for row in rows], [len(row.tokens) for row in rows], device)


def _logprobs_before(logits: Tensor, rows: Sequence[Row]) -> dict[int, Tensor]:
    """Row index -> log-probabilities [vocab] of the model's own distribution, before anything is applied to it."""
    asked = [index for index, row in enumerate(rows) if row.params.logprobs is not None]
    return {index: logits[index].log_softmax(dim=0) for index in asked}


def _told(logprobs: dict[int, Tensor], index: int, token: int, rows: Sequence[Row]) -> TokenLogprob | None:
    if index not in logprobs:
        return None
    values = logprobs[index]
    top = values.topk(rows[index].params.logprobs or 0)
    return TokenLogprob(float(values[token]), top.indices.tolist(), top.values.tolist())
