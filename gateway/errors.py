"""Errors with a stable code, and the one table that turns them into HTTP."""

from __future__ import annotations


class ApiError(Exception):
    """An answer in OpenAI's error shape. `param` is the path of the field at fault: messages[0].role."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class ModelError(Exception):
    """The model cannot be served. One line that names what and why; raised before the port opens."""


class ServerReplaced(Exception):
    """The server to which this gateway has attached itself is another one now: only a new start can follow it."""
