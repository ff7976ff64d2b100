"""A real Ray cluster of two nodes on this machine serves through gateways: one of each, for all tests in order."""

import re
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.cluster.certificates import make_credentials
from gateway.engines.tls import client_context
from scheduler.protocol import ENGINE_NAME, Credentials
from tests.fixtures.ray_cluster import Node, RayCluster, ray_cluster
from tests.fixtures.server import RunningServer, eventually, run_to_end, serving
from tests.fixtures.streams import Body, Seen, all_of

NAME = "tested"
STORY = "Once upon a time there was a"
LONG: dict[str, Any] = {"max_tokens": 48, "ignore_eos": True}
AT = re.compile(r"replica (\d) is at (\S+):(\d+)")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(2) as running:
        yield running


@pytest.fixture(scope="module")
def server(cluster: RayCluster, gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    flags = ("--ray", cluster.address, "--ray-name", NAME, "--replicas", "2")
    with serving(tmp_path_factory.mktemp("ray"), *flags) as running:
        yield running


def engines_of(node: Node) -> int:
    return len(node.engines())


def test_each_node_has_an_engine(cluster: RayCluster, server: RunningServer) -> None:
    assert [engines_of(node) for node in cluster.nodes] == [1, 1]
    assert server.greedy(STORY)
    assert server.metrics()["engine_up"] == 2


@pytest.mark.parametrize("who", ["nobody", "another authority"])
def test_who_has_no_certificate_is_refused_by_the_engines(who: str, server: RunningServer) -> None:
    addresses = {(host, int(port)) for _, host, port in AT.findall(server.log)}
    assert len(addresses) == 2
    for address in addresses:
        with socket.create_connection(address, timeout=20) as sock:
            assert is_refused(context_of(who), sock)
    assert "PRIVATE" not in server.log + server.output


def is_refused(context: ssl.SSLContext, sock: socket.socket) -> bool:
    try:
        with context.wrap_socket(sock, server_hostname=ENGINE_NAME) as stranger:
            return stranger.recv(1) == b""
    except OSError as error:
        return not isinstance(error, TimeoutError)


def context_of(who: str) -> ssl.SSLContext:
    """Neither checks who the engine is: it does not come to that."""
    if who == "nobody":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
    else:
        strange: Credentials = make_credentials(datetime.now(UTC)).gateway
        context = client_context(strange)
        context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_another_gateway_attaches_by_name(
    cluster: RayCluster, server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flags = ("--ray", cluster.address, "--attach", NAME)
    with serving(tmp_path_factory.mktemp("attached"), *flags) as other:
        assert other.greedy(STORY) == server.greedy(STORY)
        assert other.metrics()["engine_up"] == 2
    assert server.greedy(STORY)  # its end ended no engine
    assert server.metrics()["engine_restarts_total"] == 0


def test_a_name_that_nobody_has_is_told(cluster: RayCluster) -> None:
    done = run_to_end("--ray", cluster.address, "--attach", "nobody")
    assert done.returncode == 1
    assert "there is no server named nobody in this cluster" in done.stderr


async def test_killing_a_node_loses_no_stream(cluster: RayCluster, server: RunningServer) -> None:
    """Each engine has several streams; the other one goes on with them, and a new one is placed on the node that is
    left."""
    bodies: list[Body] = [
        {"prompt": f"{number} {STORY}", "temperature": number % 2, "seed": number, "n": 1 + number % 2, **LONG}
        for number in range(8)
    ]
    calm = await all_of(server, bodies)
    left, lost = cluster.nodes
    killed: list[Node] = []

    def watch(seen: Seen) -> None:
        if seen.num_events == 10 and not killed:
            killed.append(lost)
            lost.kill()

    died = await all_of(server, bodies, watch)
    assert [seen.content for seen in died] == [seen.content for seen in calm]
    assert killed and sum(seen.remarks for seen in died) > 0
    eventually(lambda: server.metrics()["engine_up"] == 2, "the lost replica is placed anew")
    assert (engines_of(left), engines_of(lost)) == (2, 0)
    assert server.metrics()["migrations_total{outcome=moved}"] == server.metrics()["migrations_total"] > 0
