"""Clients of an app over a fake engine."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import httpx
import pytest

from gateway.services import Services
from tests.fixtures.fakes import client_of, toy_services

MakeClient = Callable[..., httpx.AsyncClient]


@pytest.fixture
def services() -> Services:
    return toy_services()


@pytest.fixture
async def client(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(client_of(services))
