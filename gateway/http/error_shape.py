"""From an error to its response: Anthropic's shape below /v1/messages, nanochat's at /chat/completions, OpenAI's
everywhere else."""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from gateway.errors import ApiError
from gateway.http.exchange import exchange_of
from gateway.openai import encode

ANTHROPIC = "/v1/messages"
CHAT_WEB = "/chat/completions"
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def is_anthropic(path: str) -> bool:
    return path == ANTHROPIC or path.startswith(ANTHROPIC + "/")


def error_response(error: ApiError, scope: Scope) -> Response:
    body: dict[str, Any]
    if is_anthropic(scope["path"]):
        body = anthropic_body(error, exchange_of(scope).request_id)
    elif scope["path"] == CHAT_WEB:
        body = chat_web_body(error)
    else:
        body = error.body()
    return Response(encode(body), status_code=error.status, media_type="application/json", headers=error.headers)


def anthropic_body(error: ApiError, request_id: str | None = None) -> dict[str, Any]:
    """There is no place for the field at fault but the message."""
    otherwise = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, otherwise)
    message = error.message
    if error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def chat_web_body(error: ApiError) -> dict[str, Any]:
    """FastAPI's: a text, or of a malformed request what is wrong where. OpenAI's form stands beside it."""
    detail: Any = error.message
    if error.status == 422:
        detail = [{"type": error.code, "loc": ["body", *_steps(error.param or "")], "msg": error.message}]
    return {"detail": detail, **error.body()}


def _steps(path: str) -> list[str | int]:
    """messages, 0, role of messages[0].role."""
    return [int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", path)]
