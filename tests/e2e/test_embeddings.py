"""/v1/embeddings of the real server and model, against transformers."""

from pathlib import Path

import numpy as np
import openai
import torch

from gateway.model.load import load_served_model
from tests.fixtures.oracle import transformers_model
from tests.fixtures.server import MODEL

TEXTS = ["The sun rises in the east.", "a", "Züge fahren nach 東京 😀", "one two three " * 60]
TOLERANCE = 1e-4  # the server computes in float32


@torch.inference_mode()
def told_by_transformers(gguf_path: Path) -> np.ndarray:
    tokenizer, model = load_served_model(gguf_path, "default", 0).tokenizer, transformers_model(gguf_path)
    rows = []
    for text in TEXTS:
        hidden = model(torch.tensor([tokenizer.encode(text)]), output_hidden_states=True).hidden_states[-1]
        rows.append(torch.nn.functional.normalize(hidden[0].mean(dim=0), dim=0).numpy())
    return np.stack(rows)


def test_equal_transformers(client: openai.OpenAI, gguf_path: Path) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    theirs = told_by_transformers(gguf_path)
    np.testing.assert_allclose([each.embedding for each in answer.data], theirs, rtol=0, atol=TOLERANCE)
    assert answer.usage.prompt_tokens > len(TEXTS[-1].split())


def test_a_prompt_that_the_cache_holds_is_read_all_the_same(client: openai.OpenAI) -> None:
    first, second = (client.embeddings.create(model=MODEL, input=TEXTS[-1]).data[0].embedding for _ in range(2))
    np.testing.assert_allclose(first, second, rtol=0, atol=TOLERANCE)


def test_fewer_dimensions(client: openai.OpenAI) -> None:
    whole = np.array(client.embeddings.create(model=MODEL, input=TEXTS[0]).data[0].embedding)
    cut = np.array(client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=64).data[0].embedding)
    np.testing.assert_allclose(cut, whole[:64] / np.linalg.norm(whole[:64]), rtol=0, atol=TOLERANCE)


async def test_async(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.embeddings.create(model=MODEL, input="hi", encoding_format="float")
    assert abs(np.linalg.norm(answer.data[0].embedding) - 1) < TOLERANCE
