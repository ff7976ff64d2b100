"""What the default model says of a prompt itself is what transformers says of it in float32."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.loaders.gguf import GgufCheckpoint
from engine.prompt import HEAD_ROWS, score
from gateway.model.load import load_served_model
from scheduler.plan import PromptResult
from tests.fixtures.harness import LIMITS, Harness, Loaded, load
from tests.fixtures.oracle import transformers_model

TOLERANCE = 1e-4
NUM_TOP = 5
TEXTS = [
    "The capital of France is Paris. The capital of Spain is",
    "🙂",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "用一句话介绍北京。",
    "It was the best of times, it was the worst of times, it was the age of wisdom. " * 15,
]


@dataclass
class Truth:
    """A prompt, and what transformers says of it."""

    ids: list[int]
    logprobs: Tensor  # [tokens - 1, vocab]
    embedding: Tensor  # [hidden]


@pytest.fixture(scope="module")
def model(gguf_path: Path) -> Loaded:
    checkpoint = GgufCheckpoint(gguf_path)
    return Loaded(checkpoint, load(checkpoint))


@pytest.fixture(scope="module")
def truths(gguf_path: Path) -> list[Truth]:
    tokenizer = load_served_model(gguf_path, "default", 0).tokenizer
    theirs = transformers_model(gguf_path)
    return [tell(theirs, tokenizer.encode(text)) for text in TEXTS]


@torch.inference_mode()
def tell(theirs: torch.nn.Module, ids: list[int]) -> Truth:
    output = theirs(torch.tensor([ids]), output_hidden_states=True)
    embedding = output.hidden_states[-1][0].mean(dim=0)  # they end with those after the final norm
    return Truth(ids, output.logits[0, :-1].log_softmax(dim=1), embedding)


def check_logprobs(result: PromptResult, truth: Truth) -> None:
    assert result.logprobs is not None
    assert len(result.logprobs) == len(truth.ids) - 1
    for told, row, token in zip(result.logprobs, truth.logprobs, truth.ids[1:], strict=True):
        theirs = float(row[token])
        assert told.logprob == pytest.approx(theirs, abs=TOLERANCE)
        # Tokens that are equally likely within the tolerance may change places.
        assert told.top_logprobs == pytest.approx(row.topk(NUM_TOP).values.tolist(), abs=TOLERANCE)
        assert told.top_logprobs == pytest.approx(row[torch.tensor(told.top_ids)].tolist(), abs=TOLERANCE)
        num_above, num_near = ((row > theirs + margin).sum() for margin in (2 * TOLERANCE, -2 * TOLERANCE))
        assert num_above + 1 <= told.rank <= num_near


def check_embedding(result: PromptResult, truth: Truth) -> None:
    assert result.embedding is not None
    np.testing.assert_allclose(np.frombuffer(result.embedding, "<f4"), truth.embedding.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("budget", [16, 256])
def test_both_equal_transformers_among_neighbours_in_chunks(model: Loaded, truths: list[Truth], budget: int) -> None:
    harness = Harness(model, replace(LIMITS, max_step_tokens=budget), num_blocks=400)
    asked = []
    for index, truth in enumerate(truths):
        harness.submit(truth.ids, max_tokens=4)  # the cache knows its blocks when the next ones come
        wishes = {"prompt_logprobs": NUM_TOP, "embed": index % 2 == 0}
        asked.append(harness.submit(truth.ids, max_tokens=index % 3, **wishes))
    embedded = [harness.submit(truth.ids, max_tokens=0, embed=True) for truth in truths]
    harness.run()
    assert not all(work.sample for plan in harness.plans for work in plan.works)  # prompts came in chunks
    assert set(harness.told) == {seq.id for seq in asked + embedded}
    for seq, truth in zip(asked, truths, strict=True):
        check_logprobs(harness.told[seq.id], truth)
    for seq, truth in zip(asked[::2] + embedded, truths[::2] + truths, strict=True):
        check_embedding(harness.told[seq.id], truth)


def test_a_prompt_preempted_half_way_is_read_right(model: Loaded, truths: list[Truth]) -> None:
    truth = truths[-1]
    num_blocks = 2 + -(-len(truth.ids) // 16) + 6
    harness = Harness(model, replace(LIMITS, max_step_tokens=20), num_blocks=num_blocks)
    for token in range(100, 104):
        harness.submit([token] * 12, max_tokens=24)
    seq = harness.submit(truth.ids, priority=1, max_tokens=0, prompt_logprobs=NUM_TOP, embed=True)
    harness.run()
    assert seq.preemptions > 0
    check_logprobs(harness.told[seq.id], truth)
    check_embedding(harness.told[seq.id], truth)


def test_a_preempted_answer_does_not_tell_again(model: Loaded, truths: list[Truth]) -> None:
    harness = Harness(model, num_blocks=2 + 6)
    seqs = [harness.submit(truths[0].ids, max_tokens=40, prompt_logprobs=NUM_TOP) for _ in range(3)]
    harness.run()
    assert sum(seq.preemptions for seq in seqs) > 0
    for seq in seqs:
        check_logprobs(harness.told[seq.id], truths[0])


def test_logits_of_long_chunks_are_made_in_slices(model: Loaded, truths: list[Truth]) -> None:
    truth = truths[-1]
    harness = Harness(model, replace(LIMITS, max_step_tokens=512), num_blocks=100)
    seq = harness.submit(truth.ids, max_tokens=0, prompt_logprobs=NUM_TOP)
    harness.run()
    assert HEAD_ROWS < harness.plans[0].num_tokens == len(truth.ids)
    check_logprobs(harness.told[seq.id], truth)


def test_a_prompt_of_one_token_has_no_logprobs(model: Loaded) -> None:
    harness = Harness(model, num_blocks=100)
    seq = harness.submit([5], max_tokens=0, prompt_logprobs=NUM_TOP)
    harness.run()
    assert harness.told[seq.id] == PromptResult([])


def test_the_rank_counts_likelier_tokens_only() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [5.0, 4.0, 3.0, 2.0]])
    scores = score(logits, torch.tensor([3, 2]), num_top=0)
    assert scores.ranks.tolist() == [1, 3]
    assert scores.logprobs.exp().tolist() == pytest.approx([0.4576, 0.0871], abs=1e-4)
    assert scores.top_ids.tolist() == [[], []]
