"""Which format of tool calls a model was trained on, told by its chat template."""

from __future__ import annotations

from collections.abc import Collection

from gateway.chat.tools import knows_tools
from gateway.tools.base import ToolFormat
from gateway.tools.hermes import HermesFormat
from gateway.tools.llama3_json import Llama3JsonFormat
from gateway.tools.mistral import MistralFormat
from gateway.tools.pythonic import PAIRS, PythonicFormat

NAMES = ("hermes", "llama3_json", "mistral", "pythonic")
# The first that a template mentions. <tool_call> before the others: templates of fine-tuned models mention both.
_TOLD_BY = (
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    *((begin, "pythonic") for begin, _ in PAIRS),
    ("func_name1(", "pythonic"),
    ("<|python_tag|>", "llama3_json"),
    ('"parameters": ', "llama3_json"),
)
_ARCHITECTURES = {"llama": "llama3_json", "llama4": "pythonic", "lfm2": "pythonic", "mistral3": "mistral"}


def choose(
    template_source: str, vocabulary_specials: Collection[str], architecture: str | None, override: str | None
) -> ToolFormat:
    """The format of that name; or the one that the template tells of; or hermes, which needs no training.
    Raises ValueError for a name that there is none of."""
    if override is not None and override not in NAMES:
        raise ValueError(f"there is no tool parser '{override}'; there are {', '.join(NAMES)}")
    name = override or _told(template_source, vocabulary_specials, architecture)
    if name == "mistral":
        return MistralFormat(by_name="[ARGS]" in template_source or "[ARGS]" in vocabulary_specials)
    if name == "pythonic":
        return PythonicFormat(next((pair for pair in PAIRS if pair[0] in template_source), None))
    return Llama3JsonFormat() if name == "llama3_json" else HermesFormat()


def _told(template_source: str, vocabulary_specials: Collection[str], architecture: str | None) -> str:
    if not knows_tools(template_source):
        return "hermes"
    by_template = [name for sign, name in _TOLD_BY if sign in template_source]
    by_vocabulary = [name for sign, name in _TOLD_BY if sign in vocabulary_specials]
    by_architecture = [_ARCHITECTURES[architecture]] if architecture in _ARCHITECTURES else []
    return next(iter([*by_template, *by_vocabulary, *by_architecture]), "hermes")
