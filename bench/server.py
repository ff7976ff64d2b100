"""What a server tells of itself before it is measured: its model, its version, how it counts tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bench.answers import failure_of
from bench.client import Client
from bench.words import FEWEST, WORDS, single_tokens

VERSION_CHARS = 80


class ServerError(Exception):
    """One line: it cannot be measured."""


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    model: str
    version: str  # empty: not told
    words: tuple[str, ...]  # for prompts
    has_exact_words: bool  # each is one token, by its own /tokenize

    @property
    def title(self) -> str:
        return f"{self.model} at {self.url}" + (f", version {self.version}" if self.version else "")


async def look_at(client: Client, url: str, model: str) -> Server:
    """`model`: empty for its first. Raises ServerError."""
    model = model or await _first_model(client, url)
    try:
        words = await single_tokens(_Counter(client, model, url).count)
    except _NoCount:
        words = []
    is_exact = len(words) >= FEWEST
    return Server(url, model, await _version(client, url), tuple(words if is_exact else WORDS), is_exact)


async def _first_model(client: Client, url: str) -> str:
    told = await _get(client, api_path(url, "/models"))
    try:
        return str(told["data"][0]["id"])
    except (LookupError, TypeError):
        raise ServerError(f"{url}/models names no model: give one with --model") from None


async def _version(client: Client, url: str) -> str:
    try:
        told = await _get(client, _root(url, "/version"))
    except ServerError:
        return ""
    version = told.get("version") if isinstance(told, dict) else None
    return version[:VERSION_CHARS] if isinstance(version, str) else ""


async def _get(client: Client, path: str) -> Any:
    answer = await client.ask("GET", path)
    failure = failure_of(answer)
    if failure:
        raise ServerError(f"GET {path}: {failure.name}" + (f": {failure.detail}" if failure.detail else ""))
    try:
        return json.loads(answer.body)
    except ValueError:
        raise ServerError(f"GET {path}: the answer is not JSON") from None


class _NoCount(Exception):
    pass


@dataclass(slots=True)
class _Counter:
    client: Client
    model: str
    url: str

    async def count(self, text: str) -> int:
        """By /tokenize, with vLLM's names of its fields. Raises _NoCount."""
        asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
        answer = await self.client.ask("POST", _root(self.url, "/tokenize"), json.dumps(asked).encode())
        try:
            told = {} if failure_of(answer) else json.loads(answer.body)
            num = told.get("count") if isinstance(told, dict) else None
        except ValueError:
            num = None
        if not isinstance(num, int) or num < 1:
            raise _NoCount
        return num


def api_path(url: str, below: str) -> str:
    """What a request for something below the API's URL names."""
    return "/" + url.split("/", 3)[3] + below


def _root(url: str, name: str) -> str:
    """Beside /v1."""
    return api_path(url, "").removesuffix("/v1") + name
