"""The model as the gateway knows it: its name, its tokenizer, its chat template. No weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.answers.reasoning import ReasoningFormat
from gateway.tokenizer.base import Tokenizer
from gateway.tools.base import ToolFormat
from gateway.tools.hermes import HermesFormat


class ChatTemplate(Protocol):
    source: str
    variables: frozenset[str]  # that it reads

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Prompt ids of a conversation; with continue_final they end where the last message's text does. Message text
        never becomes a control token by spelling one; literals of the template do. Raises ApiError (400) where the
        template refuses the messages."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    name: str
    created: int  # unix seconds, for /v1/models
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None  # None: the model has none; chat is refused by name
    eos_ids: tuple[int, ...]
    bos_id: int | None  # put before raw prompts where add_bos
    add_bos: bool
    context_length: int  # the model's own; the engine's max_model_len may be less
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)  # from generation_config.json
    tool_format: ToolFormat = field(default_factory=HermesFormat)
    reasoning: ReasoningFormat | None = None  # None: its template knows no reasoning
    visible_ids: frozenset[int] = frozenset()  # control tokens that are part of an answer's text
    calculates: bool = False  # it was trained to call nanochat's calculator
