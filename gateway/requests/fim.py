"""Fill in the middle: the prompt of a completion that stands before a suffix, for vocabularies with the tokens."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.model.served import ServedModel
from gateway.requests.parse import invalid

# Control tokens of prefix, suffix and middle, as the models' own reports and model cards name them.
_TRIPLES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen coder, Granite, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek coder
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


def encode(prompt: str | list[int], suffix: str, model: ServedModel) -> list[int]:
    """prefix, suffix, then the middle that is to be written. Raises ApiError (400)."""
    triple = _triple(model.tokenizer.special_ids)
    if triple is None:
        message = f"The vocabulary of '{model.name}' has no tokens for filling in the middle, so suffix cannot be used."
        raise invalid("suffix", message, "unsupported_parameter")
    before, behind, middle = triple
    encoded = model.tokenizer.encode
    prefix = encoded(prompt) if isinstance(prompt, str) else prompt
    ids = [before, *prefix, behind, *encoded(suffix), middle]
    return [model.bos_id, *ids] if model.add_bos and model.bos_id is not None else ids


def _triple(special_ids: Mapping[str, int]) -> tuple[int, int, int] | None:
    for before, behind, middle in _TRIPLES:
        if before in special_ids and behind in special_ids and middle in special_ids:
            return special_ids[before], special_ids[behind], special_ids[middle]
    return None
