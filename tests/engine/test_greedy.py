"""The default model's greedy tokens are those of transformers in float32, whatever else is going on."""

import random
from pathlib import Path

import pytest

from engine.attention.sdpa import SdpaAttention
from engine.loaders.gguf import GgufCheckpoint
from gateway.model.load import load_served_model
from scheduler.types import Limits
from tests.fixtures.harness import LIMITS, Harness, Loaded, load
from tests.fixtures.oracle import greedy_choices, transformers_model

NEW_TOKENS = 64
QUESTIONS = [
    "Name three colours.",
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Explain recursion to a child.",
    "¿Cuál es la capital de España?",
    "用一句话介绍北京。",
    "👩‍👩‍👧‍👦 What does this emoji show? 🤔🎉",
    "def fibonacci(n):\n    # complete this\n",
    "SELECT name FROM users WHERE",
    "Translate 'good morning' to German, French and Italian.",
    "2 + 2 * 3 =",
    "Why is the sky blue? Answer in one sentence.",
]
TEXTS = [
    "The",
    "Once upon a time",
    "import numpy as np\n\n\ndef softmax(x):\n",
    "🙂",
    "    \n\n\t",
    "1, 1, 2, 3, 5, 8,",
    "The quick brown fox jumps over the lazy dog. " * 20,
    "In 1969, humans first walked on the",
    "<div class='row'><p>Hello</p>",
    "Привет, как дела?",
]


@pytest.fixture(scope="module")
def model(gguf_path: Path) -> Loaded:
    checkpoint = GgufCheckpoint(gguf_path)
    return Loaded(checkpoint, load(checkpoint))


@pytest.fixture(scope="module")
def prompts(gguf_path: Path) -> list[list[int]]:
    served = load_served_model(gguf_path, "default", 0)
    assert served.chat_template is not None
    chats = [served.chat_template.encode([{"role": "user", "content": text}]) for text in QUESTIONS]
    words = random.Random(0).choices(["the", "of", "river", "stone", "and", "when", "it", "falls", "song"], k=1500)
    long = served.tokenizer.encode(" " + " ".join(words))
    assert len(long) >= 1500
    return [*chats, *(served.tokenizer.encode(text) for text in TEXTS), long[:1500]]


@pytest.fixture(scope="module")
def answers(model: Loaded, prompts: list[list[int]]) -> list[list[int]]:
    """All prompts served together, in a cache of their own: what test_equal_transformers proves right."""
    return Harness(model).generate(prompts, NEW_TOKENS, temperature=0.0)


def test_equal_transformers(gguf_path: Path, prompts: list[list[int]], answers: list[list[int]]) -> None:
    assert len(prompts) >= 20
    theirs = transformers_model(gguf_path)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == NEW_TOKENS
        assert answer == greedy_choices(theirs, prompt + answer, NEW_TOKENS)


def test_equal_alone(model: Loaded, prompts: list[list[int]], answers: list[list[int]]) -> None:
    for index in (0, 6, len(prompts) - 1):
        assert Harness(model, num_blocks=200).generate([prompts[index]], NEW_TOKENS, temperature=0.0) == [
            answers[index]
        ]


def test_equal_among_random_neighbours(model: Loaded, prompts: list[list[int]], answers: list[list[int]]) -> None:
    rng = random.Random(1)
    harness = Harness(model)
    seqs = []
    for prompt in prompts:
        noise = [rng.randrange(17, 49_152) for _ in range(rng.randrange(1, 90))]
        harness.submit(
            noise, max_tokens=rng.randrange(1, 40), temperature=rng.choice([0.0, 0.9]), seed=rng.getrandbits(63)
        )
        seqs.append(harness.submit(prompt, max_tokens=NEW_TOKENS, temperature=0.0))
    harness.run()
    assert max(len(plan.works) for plan in harness.plans) > 16
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == answers


def test_equal_with_prefix_hits(model: Loaded, prompts: list[list[int]], answers: list[list[int]]) -> None:
    harness = Harness(model)
    harness.generate(prompts, 2, temperature=0.0)
    hits_before = harness.scheduler.stats().prefix_hits
    assert harness.generate(prompts, NEW_TOKENS, temperature=0.0) == answers
    assert harness.scheduler.stats().prefix_hits - hits_before > 1500


def test_equal_with_forced_preemption(model: Loaded, prompts: list[list[int]], answers: list[list[int]]) -> None:
    harness = Harness(model, num_blocks=120)  # the longest alone needs 98
    assert harness.generate(prompts, NEW_TOKENS, temperature=0.0) == answers
    assert harness.scheduler.stats().preemptions > 0


def test_equal_with_chunks_of_16(model: Loaded, prompts: list[list[int]], answers: list[list[int]]) -> None:
    limits = Limits(max_seqs=32, max_step_tokens=16, max_model_len=2048, block_size=16)
    harness = Harness(model, limits)
    assert harness.generate(prompts, NEW_TOKENS, temperature=0.0) == answers
    assert max(work.count for plan in harness.plans for work in plan.works) == 16


def test_equal_on_the_portable_path(model: Loaded, prompts: list[list[int]], answers: list[list[int]]) -> None:
    harness = Harness(model, attention=SdpaAttention())
    assert harness.generate(prompts[:6], NEW_TOKENS, temperature=0.0) == answers[:6]


def test_a_seeded_answer_does_not_depend_on_its_neighbours(model: Loaded, prompts: list[list[int]]) -> None:
    sampling = {"max_tokens": 24, "temperature": 0.9, "top_p": 0.95, "seed": 42}
    alone = Harness(model).generate(prompts[:1], **sampling)
    harness = Harness(model, LIMITS)
    one = harness.submit(prompts[0], **sampling)
    harness.generate(prompts[1:12], 30, temperature=1.0, seed=7)
    assert one.tokens[one.prompt_len :] == alone[0]
