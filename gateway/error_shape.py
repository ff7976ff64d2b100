"""From an error to its response: Anthropic's shape below /v1/messages, OpenAI's everywhere else."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from gateway.errors import ApiError
from gateway.openai import encode

ANTHROPIC = "/v1/messages"
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


def error_response(error: ApiError, path: str) -> Response:
    body = encode(error_body(error, path))
    return Response(body, status_code=error.status, media_type="application/json", headers=error.headers)


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    if path == ANTHROPIC or path.startswith(ANTHROPIC + "/"):
        return anthropic_body(error)
    return error.body()


def anthropic_body(error: ApiError) -> dict[str, Any]:
    otherwise = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, otherwise)
    return {"type": "error", "error": {"type": kind, "message": error.message}}
