"""The one table of what can go wrong while a request is served, as OpenAI-shaped errors."""

from __future__ import annotations

import math

from gateway.engines.profiles import NoProfile
from gateway.errors import ApiError
from gateway.http.ratelimit import Refusal, duration
from gateway.rolling.change import Refused
from gateway.services import Services
from scheduler.types import Rejected

_JITTER_BITS = 16
_SPREAD = 0.5  # a stated wait is up to so much longer than the estimate
_PATIENCE_S = 120.0  # OpenAI's clients give up at once where they are told to wait longer
CLIENT_CLOSED = 499  # for logs and metrics; nobody is left to read it


def retry_headers(estimate_s: float, services: Services) -> dict[str, str]:
    """Never less than the estimate, and spread: OpenAI's clients come back after exactly the time they were told."""
    jitter = services.random_bits(_JITTER_BITS) / (1 << _JITTER_BITS)
    least_s = max(0.1, estimate_s)
    most_s = least_s * (1 + _SPREAD)
    if least_s <= _PATIENCE_S:
        most_s = min(most_s, _PATIENCE_S)
    wait_s = least_s + (most_s - least_s) * jitter
    return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def unavailable(services: Services, message: str, code: str, retry_after_s: float | None = None) -> ApiError:
    estimate = services.settings.retry_after_s if retry_after_s is None else retry_after_s
    headers = retry_headers(estimate, services)
    return ApiError(503, message, type="service_unavailable_error", code=code, headers=headers)


def draining(services: Services) -> ApiError:
    return unavailable(services, "The server is shutting down. Send the request again.", "draining")


def too_many_viewers(services: Services, most: int) -> ApiError:
    return unavailable(services, f"{most} others are looking already.", "too_many_viewers", 10.0)


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
    if refusal.code in ("bad_grammar", "grammar_timeout"):
        return ApiError(400, f"The form of the answer cannot be enforced: {refusal.message}", code="invalid_grammar")
    # Everything else should have been caught here first, so it is not the client's fault.
    message = f"The engine refused the request: {refusal.message}"
    return ApiError(500, message, type="server_error", code="engine_refused")


def unauthorized(key_was_given: bool) -> ApiError:
    message = "The API key is not one of this server's." if key_was_given else "This server asks for an API key."
    message += " Send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'."
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def rate_limited(services: Services, refusal: Refusal) -> ApiError:
    """What a client's own limits refused."""
    limits = {
        "requests": f"{refusal.limit} requests a minute",
        "tokens": f"{refusal.limit} tokens a minute",
        "concurrency": f"{refusal.limit} requests at the same time",
    }
    wait_s = services.settings.retry_after_s if refusal.wait_s is None else refusal.wait_s
    wait = "" if refusal.wait_s is None else f" There is room again in {duration(refusal.wait_s)}."
    message = f"The limit of {limits[refusal.kind]} is reached.{wait}"
    headers = retry_headers(wait_s, services)
    return ApiError(429, message, type="rate_limit_exceeded", code="rate_limit_exceeded", headers=headers)


def too_many_background(services: Services, limit: int) -> ApiError:
    message = f"{limit} responses are running in the background, and more may not."
    headers = retry_headers(services.settings.retry_after_s, services)
    return ApiError(429, message, type="rate_limit_error", code="too_many_background", headers=headers)


def cancelled() -> ApiError:
    """For whoever still waits for the answer."""
    return ApiError(409, "The response was cancelled.", code="cancelled")


def generation_failed() -> ApiError:
    message = "The engine failed while it computed this answer. Nothing was wrong with the request."
    return ApiError(500, message, type="server_error", code="generation_failed")


def poisoned(num_deaths: int) -> ApiError:
    """Sent again, it would probably end the next engine."""
    message = f"The engine died {num_deaths} times while it computed this request, which is not tried again."
    headers = {"x-should-retry": "false"}
    return ApiError(500, message, type="server_error", code="poisoned", headers=headers)


def grammar_failed() -> ApiError:
    """Sent again, the request would most likely fail again."""
    message = "The form of the answer became too complex to follow while it was generated. Ask for a simpler one."
    return ApiError(400, message, code="invalid_grammar")


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


def admin_off() -> ApiError:
    message = "Engines cannot be changed here. A server that is started with --admin answers."
    return ApiError(403, message, type="permission_error", code="admin_off")


def not_admin() -> ApiError:
    message = "This key may not change engines. In the file of keys, one that may has the word admin."
    return ApiError(403, message, type="permission_error", code="not_admin")


def change_refused(refusal: Refused) -> ApiError:
    status = {"engine_not_found": 404, "reload_refused": 400}.get(refusal.code, 409)
    return ApiError(status, refusal.message, param=refusal.param, code=refusal.code)


def profiling_off() -> ApiError:
    message = "Profiling is off. A server that is started with --debug-profile answers here."
    return ApiError(403, message, type="permission_error", code="profiling_off")


def no_profile(no: NoProfile, steps: int, timeout_s: float) -> ApiError:
    match no.outcome:
        case "busy":
            message = "A profile is under way, and there is one at a time."
            return ApiError(409, message, code="profile_under_way")
        case "nothing":
            message = f"The engine had nothing to do: no step ran within {timeout_s:g} s."
            return ApiError(504, message, type="timeout_error", code="no_steps")
        case "too_large":
            message = f"The trace of so many steps is too large. Ask for fewer than {steps}."
            return ApiError(400, message, param="steps", code="profile_too_large")
        case "late":
            return ApiError(504, "The engine gave no profile in time.", type="timeout_error", code="stalled")
    message = f"The profile failed: {no.message}." if no.message else "The engine cannot profile; its log says why."
    return ApiError(500, message, type="server_error", code="profile_failed")


def outcome(error: ApiError) -> str:
    """The label under which metrics and the access log count an error."""
    if error.code == "slow_reader":
        return "slow_reader"
    by_status = {429: "rejected", CLIENT_CLOSED: "client_closed", 501: "invalid", 503: "unavailable", 504: "expired"}
    return by_status.get(error.status, "invalid" if error.status < 500 else "error")
