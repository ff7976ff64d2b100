"""At the door: asks for a key where keys are set, and holds its owner to their limits."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.chatpage.files import CHAT_PAGE
from gateway.dashboard.files import LIVE_PAGE
from gateway.errors import ApiError
from gateway.http import faults
from gateway.http.error_shape import error_response
from gateway.http.exchange import Exchange, exchange_of
from gateway.http.keys import Key
from gateway.http.ratelimit import Account, Refusal, Visit
from gateway.services import Services

# Without a key: what is asked by whoever keeps the process alive, and pages that tell nothing by themselves.
OPEN_PATHS = frozenset({"/health", "/ready", *CHAT_PAGE.paths, *LIVE_PAGE.paths})
# POST, but nothing is generated
FREE_PATHS = frozenset({"/tokenize", "/detokenize", "/debug/profile", *OPEN_PATHS})
FREE_BEGINNINGS = ("/admin/",)
FREE_ENDS = ("/count_tokens", "/render", "/cancel", "/input_tokens")
RATE_LIMIT_HEADERS = [
    f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")
]
NOBODY = b""  # whose account it is where there are no keys: everybody's


class Guard:
    """Refuses before the body is read. Tokens are charged from what the exchange counts while the request runs."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        exchange = exchange_of(scope)
        before = exchange.laps.enter("rate_limit")
        try:
            key = self._identify(scope)
            exchange.key = key.name if key else None
            exchange.is_admin = key is not None and key.admin
            account = self._account(scope, key)
            visit = self._enter(account, exchange) if account else None
        except ApiError as error:
            exchange.fail(error)
            return await error_response(error, scope)(scope, receive, send)
        finally:
            exchange.laps.enter(before)
        if account is None or visit is None:
            return await self._app(scope, receive, send)
        return await self._limited(account, visit, scope, receive, send)

    def _identify(self, scope: Scope) -> Key | None:
        """Raises 401."""
        services, path = self._services, scope["path"]
        if services.keys is None or path in OPEN_PATHS or (path == "/metrics" and not services.settings.metrics_auth):
            return None
        asked = False
        for secret in secrets_in(scope):
            asked = True
            if (key := services.keys.find(secret)) is not None:
                return key
        services.metrics.rejected("unauthorized")
        raise faults.unauthorized(asked)

    def _account(self, scope: Scope, key: Key | None) -> Account | None:
        if not is_limited(scope):
            return None
        defaults = self._services.settings.rate_limits
        limits = key.limits(defaults) if key else defaults
        client = key.digest if key else NOBODY
        return self._services.accounts.of(client, limits, self._services.clock()) if limits else None

    def _enter(self, account: Account, exchange: Exchange) -> Visit:
        """Raises 429."""
        services, now = self._services, self._services.clock()
        entered = account.enter(exchange, now)
        if isinstance(entered, Refusal):
            services.metrics.rate_limited(entered.kind)
            error = faults.rate_limited(services, entered)
            error.headers |= account.headers(now)
            raise error
        return entered

    async def _limited(self, account: Account, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        clock, exchange = self._services.clock, exchange_of(scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                shown = [(name.encode(), value.encode()) for name, value in account.headers(clock()).items()]
                message["headers"] = [*message.get("headers", ()), *shown]
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        finally:
            if exchange.running_on is None:
                account.leave(visit, clock(), free=got_nothing(exchange))
            else:
                exchange.running_on.task.add_done_callback(lambda _: account.leave(visit, clock()))


def is_limited(scope: Scope) -> bool:
    """Every POST but those named above: a new endpoint is limited until somebody says otherwise."""
    path: str = scope["path"]
    is_free = path in FREE_PATHS or path.endswith(FREE_ENDS) or path.startswith(FREE_BEGINNINGS)
    return scope["method"] == "POST" and not is_free


def got_nothing(exchange: Exchange) -> bool:
    """Refused or failed before the first token. Who left before it has used the engine all the same."""
    refused = exchange.status >= 400 and exchange.status != faults.CLIENT_CLOSED
    return refused and exchange.generated_tokens == 0


def secrets_in(scope: Scope) -> Iterator[bytes]:
    """Where OpenAI's clients put a key, and where Anthropic's do."""
    for name, value in scope["headers"]:
        if name.lower() == b"authorization":
            scheme, _, secret = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield secret.strip()
        elif name.lower() == b"x-api-key":
            yield value.strip()
