"""Fill in the middle: the prompt of a completion that stands before a suffix, for vocabularies with the tokens."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.model.served import ServedModel
from gateway.requests.parse import invalid
from gateway.requests.prompts import Prompt
from gateway.tokenizer.base import Tokenizer

# Control tokens of prefix, suffix and middle, as the models' own reports and model cards name them.
_TRIPLES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen coder, Granite, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek coder
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


def encode(prompts: Sequence[Prompt], suffix: str, model: ServedModel, add_bos: bool) -> list[list[int]]:
    """Each prompt as prefix, then the suffix, then the middle that is to be written. Raises ApiError (400)."""
    triple = _triple(model.tokenizer)
    if triple is None:
        message = f"The vocabulary of '{model.name}' has no tokens for filling in the middle, so suffix cannot be used."
        raise invalid("suffix", message, "unsupported_parameter")
    before, behind, middle = triple
    encoded = model.tokenizer.encode
    end = [behind, *encoded(suffix), middle]
    first = [model.bos_id] if add_bos and model.add_bos and model.bos_id is not None else []
    prefixes = [encoded(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return [[*first, before, *prefix, *end] for prefix in prefixes]


def _triple(tokenizer: Tokenizer) -> tuple[int, int, int] | None:
    """Of one token each. Some files, Qwen2.5's among them, do not call them special."""
    for literals in _TRIPLES:
        found = [tokenizer.encode(literal, specials=True) for literal in literals]
        if all(len(ids) == 1 for ids in found):
            before, behind, middle = (ids[0] for ids in found)
            return before, behind, middle
    return None
