"""What evaluation harnesses do: log-likelihoods of continuations, by completions that echo their prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.fixtures.oracle import transformers_model
from tests.fixtures.server import RunningServer

TOLERANCE = 1e-3  # of a sum over tens of tokens; both compute in float32, in another order
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a very large animal that lives in the sea."),
    ("Question: Is ice cold?\nAnswer:", " yes"),
    ("Question: Is ice cold?\nAnswer:", " no"),
    ("def add(a, b):\n    return a", " + b\n"),
    ("Ça coûte", " 5 € – déjà 🙂"),
    ("A", " b c d e f g h"),
]


@pytest.fixture(scope="module")
def oracle(gguf_path: Path) -> LlamaForCausalLM:
    return transformers_model(gguf_path)


@pytest.fixture(scope="module")
def rows(server: RunningServer) -> list[tuple[list[int], int]]:
    """Ids of context and continuation, and how many of them are the context's."""

    def ids(text: str) -> list[int]:
        tokens: list[int] = server.post("/tokenize", {"prompt": text}).json()["tokens"]
        return tokens

    return [(ids(context + continuation), len(ids(context))) for context, continuation in PAIRS]


def ask(server: RunningServer, prompts: list[Any]) -> list[dict[str, Any]]:
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices: list[dict[str, Any]] = server.post("/v1/completions", body).raise_for_status().json()["choices"]
    return sorted(choices, key=lambda choice: choice["index"])


def read(choice: dict[str, Any], context_len: int) -> tuple[float, bool]:
    """The continuation's log-likelihood, and whether greedy decoding would have written it."""
    told = choice["logprobs"]
    own, best = told["token_logprobs"][context_len:-1], told["top_logprobs"][context_len:-1]
    return sum(own), all(one == max(top.values()) for one, top in zip(own, best, strict=True))


@torch.inference_mode()
def expected(oracle: LlamaForCausalLM, tokens: list[int], context_len: int) -> tuple[float, bool]:
    logits = oracle(torch.tensor([tokens[:-1]])).logits[0, context_len - 1 :]
    wanted = torch.tensor(tokens[context_len:])
    own = logits.log_softmax(1).gather(1, wanted[:, None])
    return own.sum().item(), bool((logits.argmax(1) == wanted).all())


def assert_as_expected(choices: list[dict[str, Any]], rows: list[tuple[list[int], int]], oracle: Any) -> None:
    greedy = []
    for choice, (tokens, context_len) in zip(choices, rows, strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == len(tokens) + 1
        assert choice["logprobs"]["token_logprobs"][0] is None
        likelihood, is_greedy = read(choice, context_len)
        truth, truth_is_greedy = expected(oracle, tokens, context_len)
        assert likelihood == pytest.approx(truth, abs=TOLERANCE)
        assert is_greedy == truth_is_greedy
        greedy.append(is_greedy)
    assert {True, False} == set(greedy)


def test_of_token_ids(server: RunningServer, rows: list[tuple[list[int], int]], oracle: LlamaForCausalLM) -> None:
    assert_as_expected(ask(server, [tokens for tokens, _ in rows]), rows, oracle)


def test_of_texts(server: RunningServer, rows: list[tuple[list[int], int]], oracle: LlamaForCausalLM) -> None:
    choices = ask(server, [context + continuation for context, continuation in PAIRS])
    assert_as_expected(choices, rows, oracle)
    for choice, (context, continuation) in zip(choices, PAIRS, strict=True):
        assert choice["text"].startswith(context + continuation)


def test_again_from_the_prefix_cache(
    server: RunningServer, rows: list[tuple[list[int], int]], oracle: LlamaForCausalLM
) -> None:
    """One prompt a request, most of it cached: nothing is left out."""
    ids = [tokens for tokens, _ in rows]
    assert_as_expected([ask(server, [tokens])[0] for tokens in ids], rows, oracle)


def test_rolling_over_a_whole_text(server: RunningServer, oracle: LlamaForCausalLM) -> None:
    """Perplexity: a context of one token, here the model's own beginning."""
    text = "<|im_start|>" + " ".join(["It was the best of times, it was the worst of times."] * 20)
    tokens = server.post("/tokenize", {"prompt": text}).json()["tokens"]
    (choice,) = ask(server, [tokens])
    truth, _ = expected(oracle, tokens, 1)
    assert read(choice, 1)[0] == pytest.approx(truth, rel=1e-5)
