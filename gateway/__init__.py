"""HTTP and text: OpenAI API, templates, tokens, streams, supervision of engines. Never imports torch or engine.

`LLM` and `AsyncLLM` are the same without HTTP, for Python programs: docs/offline.md. They are imported when somebody
asks for them, since whatever imports a part of the gateway imports this first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.offline.async_llm import AsyncLLM
    from gateway.offline.errors import LLMError
    from gateway.offline.llm import LLM

__all__ = ["LLM", "AsyncLLM", "LLMError"]

_HOMES = {"AsyncLLM": "async_llm", "LLM": "llm", "LLMError": "errors"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gateway.offline.{_HOMES[name]}"), name)
