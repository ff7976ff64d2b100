"""The one table of what can go wrong while a request is served, as OpenAI-shaped errors."""

from __future__ import annotations

import math

from gateway.errors import ApiError
from gateway.services import Services
from scheduler.types import Rejected

_JITTER_BITS = 16
_SPREAD = 0.5  # a stated wait is up to so much longer than the estimate
CLIENT_CLOSED = 499  # for logs and metrics; nobody is left to read it


def retry_headers(estimate_s: float, services: Services) -> dict[str, str]:
    """Never less than the estimate, and spread: OpenAI's clients come back after exactly the time they were told."""
    jitter = services.random_bits(_JITTER_BITS) / (1 << _JITTER_BITS)
    wait_s = max(0.1, estimate_s) * (1 + _SPREAD * jitter)
    return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def unavailable(services: Services, message: str, code: str, retry_after_s: float | None = None) -> ApiError:
    estimate = services.settings.retry_after_s if retry_after_s is None else retry_after_s
    headers = retry_headers(estimate, services)
    return ApiError(503, message, type="service_unavailable_error", code=code, headers=headers)


def draining(services: Services) -> ApiError:
    return unavailable(services, "The server is shutting down. Send the request again.", "draining")


def engine_unavailable(services: Services, message: str, retry_after_s: float | None = None) -> ApiError:
    return unavailable(services, message, "engine_unavailable", retry_after_s)


def rejected(services: Services, refusal: Rejected) -> ApiError:
    """What the engine itself refused."""
    if refusal.code == "queue_full":
        estimate = services.settings.retry_after_s if refusal.retry_after_s is None else refusal.retry_after_s
        headers = retry_headers(estimate, services)
        return ApiError(429, refusal.message, type="rate_limit_error", code="queue_full", headers=headers)
    if refusal.code in ("too_long", "never_fits"):
        return ApiError(400, refusal.message, code="context_length_exceeded")
    # Everything else should have been caught here first, so it is not the client's fault.
    message = f"The engine refused the request: {refusal.message}"
    return ApiError(500, message, type="server_error", code="engine_refused")


def generation_failed() -> ApiError:
    message = "The engine failed while it computed this answer. Nothing was wrong with the request."
    return ApiError(500, message, type="server_error", code="generation_failed")


def internal(request_id: str) -> ApiError:
    message = f"The server failed to answer this request. Please report its id: {request_id}."
    return ApiError(500, message, type="server_error", code="internal_error")


def expired(max_wait_s: float | None) -> ApiError:
    limit = "" if max_wait_s is None else f" longer than {max_wait_s:g} s"
    return ApiError(504, f"The request waited in the queue{limit}.", type="timeout_error", code="queue_timeout")


def stalled(seconds: float) -> ApiError:
    message = f"The engine sent nothing for {seconds:g} s or more."
    return ApiError(504, message, type="timeout_error", code="stalled")


def slow_reader(max_bytes: int) -> ApiError:
    message = f"The stream was read too slowly: more than {max_bytes} bytes were waiting."
    return ApiError(408, message, type="timeout_error", code="slow_reader")


def outcome(error: ApiError) -> str:
    """The label under which metrics and the access log count an error."""
    if error.code == "slow_reader":
        return "slow_reader"
    by_status = {429: "rejected", CLIENT_CLOSED: "client_closed", 500: "error", 503: "unavailable", 504: "expired"}
    return by_status.get(error.status, "invalid" if error.status < 500 else "error")
