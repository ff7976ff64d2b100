"""Asks a server with OpenAI's chat API, over HTTP or HTTPS. The whole of what is known of servers is here."""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import msgspec

CONNECT_S = 15.0
SILENCE_S = 600.0  # the longest that a server may say nothing while it reads a prompt
MAX_LINE_BYTES = 8 << 20
MAX_ANSWER_BYTES = 64 << 20
SHOWN_CHARS = 400
CUT_SHORT = "the server hung up within the answer"
_DATA = b"data:"


class UrlError(Exception):
    """Not the address of a server. One line."""


class AskError(Exception):
    """There is no answer, or not the whole of one. One line that says why. status: of HTTP; 0: there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Piece(msgspec.Struct, frozen=True):
    """What one event adds to an answer."""

    text: str = ""
    reasoning: str = ""
    finish: str = ""  # why the answer ended, in the piece that ends it
    usage: Usage | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: object = None


class _Problem(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Problem | str | None = None
    message: str = ""
    detail: object = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def api_url(url: str) -> str:
    """With /v1 where no path is given. Raises UrlError."""
    try:
        parts = urlsplit(url)
        port_is_wrong = parts.port == 0
    except ValueError as error:
        raise UrlError(f"{error}: {url!r}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port_is_wrong:
        raise UrlError(f"expected http://host:port or https://host, not {url!r}")
    if "@" in parts.netloc or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", url):
        raise UrlError("a URL of visible ASCII characters without user, query and fragment")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


class Client:
    """Of one server. Each request has a connection of its own: to close it is to stop the answer."""

    def __init__(self, url: str, api_key: str, silence_s: float = SILENCE_S) -> None:
        """url: from api_url."""
        self.url = url
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._silence_s = silence_s

    def first_model(self) -> str:
        """Raises AskError."""
        with self._responding("GET", "/models") as response:
            body = response.read(MAX_LINE_BYTES)
        try:
            models = msgspec.json.decode(body, type=_Models).data
        except msgspec.MsgspecError as error:
            raise AskError(f"{self.url}/models does not answer as OpenAI's API does: {error}") from error
        if not models:
            raise AskError(f"{self.url} serves no model")
        return models[0].id

    def ask(self, body: Mapping[str, object]) -> Generator[Piece, None, None]:
        """One streamed answer; closed early, it is stopped. Raises AskError."""
        told = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self._responding("POST", "/chat/completions", msgspec.json.encode(told)) as response:
            yield from _pieces(response)

    @contextmanager
    def _responding(self, method: str, path: str, body: bytes | None = None) -> Iterator[http.client.HTTPResponse]:
        """Every failure of the exchange, also of what is read within, becomes an AskError."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            with closing(kind(parts.hostname or "", parts.port, timeout=CONNECT_S)) as connection:
                connection.connect()
                connection.sock.settimeout(self._silence_s)
                connection.request(method, parts.path + path, body, self._headers)
                with closing(connection.getresponse()) as response:
                    if response.status != 200:
                        raise AskError(_refusal(self.url, response), response.status)
                    yield response
        except TimeoutError as error:
            raise AskError(f"{self.url} says nothing") from error
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or error
            raise AskError(f"cannot reach {self.url}: TLS: {reason}") from error
        except OSError as error:
            raise AskError(f"cannot reach {self.url}: {error.strerror or error}") from error
        except http.client.IncompleteRead as error:
            raise AskError(CUT_SHORT) from error
        except http.client.HTTPException as error:
            raise AskError(f"{self.url} does not answer as HTTP: {type(error).__name__} {error}") from error


def _pieces(response: http.client.HTTPResponse) -> Iterator[Piece]:
    decode, num_bytes, has_ended = msgspec.json.Decoder(_Event).decode, 0, False
    while line := response.readline(MAX_LINE_BYTES):
        num_bytes += len(line)
        if num_bytes > MAX_ANSWER_BYTES:
            raise AskError(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA).strip()
        if data == b"[DONE]":
            return
        try:
            event = decode(data)
        except msgspec.MsgspecError as error:
            raise AskError(f"an event that is not as OpenAI's: {error}") from error
        if event.error is not None:
            raise AskError(_message(data) or "an error within the answer")
        piece = _piece(event)
        has_ended = has_ended or bool(piece.finish)
        yield piece
    if not has_ended:
        raise AskError(CUT_SHORT)


def _piece(event: _Event) -> Piece:
    choice = event.choices[0] if event.choices else _Choice()
    delta = choice.delta or _Delta()
    reasoning = delta.reasoning_content or delta.reasoning or ""  # two names of the same
    return Piece(delta.content or "", reasoning, choice.finish_reason or "", event.usage)


def _refusal(url: str, response: http.client.HTTPResponse) -> str:
    said = _message(response.read(MAX_LINE_BYTES))
    if response.status == 401:
        said = f"{said or 'it asks for a key'} (--api-key)"
    return said or f"{url} answers {response.status} {response.reason}".rstrip()


def _message(body: bytes) -> str:
    """Of an error as OpenAI's API writes it, or one of the ways that others do; "": it says nothing."""
    try:
        said = msgspec.json.decode(body, type=_Refusal)
    except msgspec.MsgspecError:
        return ""
    problem = said.error.message if isinstance(said.error, _Problem) else said.error
    text = problem or said.message or (said.detail if isinstance(said.detail, str) else "")
    return " ".join(text.split())[:SHOWN_CHARS]
