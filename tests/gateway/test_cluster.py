"""Options of Ray, and what can be told of a cluster without one. tests/e2e/test_ray.py has a real one."""

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from gateway.cli import with_address
from gateway.cluster import attached, draining, host, launcher, places, registry
from gateway.cluster.draining import leave_draining
from gateway.cluster.launcher import RayLauncher
from gateway.cluster.messages import Answer, Fetched, Known, Order, Refused, Started
from gateway.cluster.options import Share, check_ray, num_replicas, share_of
from gateway.cluster.places import crowded_nodes
from gateway.cluster.server import sharers
from gateway.config import Config, ConfigError
from gateway.engines.socket import EngineFailed, SocketEngine
from gateway.engines.supervisor import Supervisor
from gateway.errors import ServerReplaced
from gateway.model.resolve import ModelRequest
from gateway.siblings.messages import Model
from scheduler.protocol import Credentials, EngineConfig, Tcp
from tests.fixtures.engines import RecordingObserver

FILES = {"engine_tls_cert": "c", "engine_tls_key": "k", "engine_tls_ca": "a"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"attach": "other"}, "attach goes with --ray"),
        ({"engine_tls_key": "k"}, "engine_tls_key goes with --ray"),
        ({"ray": "auto", "engine_tls_key": "k"}, "are given together"),
        ({"ray": "auto", "attach": "other", **FILES}, "is told its certificates"),
        ({"ray": "auto", "device": "cuda:1"}, "Ray chooses which; not 'cuda:1'"),
        ({"ray": "auto", "attach": "other", "admin": True}, "at the gateway that keeps them"),
        ({"ray": "auto", "debug_profile": True}, "not with --ray"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_ray(Config(**given))  # type: ignore[arg-type]


def test_what_does_is_not() -> None:
    for config in (Config(), Config(ray="auto", attach="x"), Config(ray="local", device="cuda", **FILES)):
        check_ray(config)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--ray", "--ray auto"),
        ("--ray --replicas 2", "--ray auto --replicas 2"),
        ("--ray head:6379 --port 1", "--ray head:6379 --port 1"),
        ("--ray=local", "--ray=local"),
        ("--port 1", "--port 1"),
        ("", ""),
    ],
)
def test_ray_without_an_address_is_that_of_this_machine(given: str, told: str) -> None:
    assert with_address(given.split()) == told.split()


def test_an_engine_takes_gpus_where_there_are_any() -> None:
    gpus = {"CPU": 64.0, "GPU": 8.0}
    assert share_of(Config(), gpus, 2) == Share(1.0, 2)
    assert share_of(Config(), {"CPU": 64.0}, 2) == Share(1.0, 0)
    assert share_of(Config(device="cpu", threads=4), gpus, 2) == Share(4.0, 0)
    assert share_of(Config(device="cuda"), {"CPU": 1.0}, 1) == Share(1.0, 1)  # it waits until there is one
    assert Share(4.0, 0).bundle == {"CPU": 4.0} and Share(1.0, 2).bundle == {"CPU": 1.0, "GPU": 2}
    assert (str(Share(1.0, 2)), str(Share(2.0, 0))) == ("1 CPU and 2 GPUs", "2 CPUs")


def test_as_many_replicas_as_were_asked_for_or_as_there_are_gpus_for() -> None:
    gpus = {"GPU": 8.0}
    assert [num_replicas(Config(replicas=count), gpus, Share(1, 2)) for count in (0, 3, 9)] == [4, 3, 9]
    assert [num_replicas(Config(replicas=count), gpus, Share(1, 0)) for count in (0, 3)] == [1, 3]


def test_nodes_that_have_more_than_others_are_avoided() -> None:
    share, small, large = Share(1.0, 1), {"CPU": 8.0}, {"CPU": 8.0, "GPU": 8.0}
    nodes = {"head": small, "a": large, "b": large}
    assert crowded_nodes(nodes, share, []) == frozenset()
    assert crowded_nodes(nodes, share, ["a"]) == {"a"}
    assert crowded_nodes(nodes, share, ["a", "b"]) == frozenset()
    assert crowded_nodes(nodes, share, ["a", "b", "a", "gone"]) == {"a"}
    assert crowded_nodes({}, share, ["gone"]) == frozenset()


def test_nodes_that_hold_no_engine_share_none() -> None:
    head, worker = {"memory": 1.0}, {"CPU": 8.0}
    nodes = {"head": head, "gateway": {"CPU": 0.0}, "a": worker, "b": worker}
    assert sharers(4, Share(1.0, 0), nodes) == 2
    assert sharers(3, Share(1.0, 0), {"head": head}) == 3  # until the autoscaler has brought one
    assert sharers(4, Share(1.0, 1), nodes) == 1


@dataclass
class Program:
    """An EngineProcess that has only been told what to do."""

    config: EngineConfig
    ended: str | None = None

    was_killed = False

    async def port(self) -> int:
        return 1

    async def last_words(self) -> str | None:
        return self.ended

    async def stop(self) -> None:
        self.ended = "stopped"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """That hosts start, without Ray."""
    started: list[Program] = []

    async def start(command: object, config: EngineConfig, environ: object) -> Program:
        started.append(Program(config))
        return started[-1]

    context = SimpleNamespace(get_node_id=lambda: "a")
    monkeypatch.setattr(host, "configure_logging", lambda *how: None)
    monkeypatch.setattr(host.EngineProcess, "start", start)
    monkeypatch.setattr(host.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(host.ray, "get_runtime_context", lambda: context)
    return started


def an_order(folder: Path) -> bytes:
    tcp = Tcp("", 0, Credentials("", "", ""))
    config = EngineConfig(model=str(folder), format="dummy", socket_path="", tcp=tcp, tp=2)
    return msgspec.json.encode(Order(config, ModelRequest(str(folder))))


async def test_ranks_of_two_engines_on_a_node_meet_in_folders_of_their_own(
    programs: list[Program], tmp_path: Path
) -> None:
    hosts = [host.EngineHost(), host.EngineHost()]
    for each in hosts:
        await each.fetch(an_order(tmp_path))
        assert isinstance(msgspec.json.decode(await each.start(an_order(tmp_path)), type=Answer), Started)
    folders = [Path(program.config.socket_path).parent for program in programs]
    assert folders[0] != folders[1] and all(folder.stat().st_mode & 0o777 == 0o700 for folder in folders)
    (folders[0] / "engine.sock.ranks").touch()
    await hosts[0].stop()
    assert [folder.exists() for folder in folders] == [False, True]
    programs[1].ended = "it ended by itself"
    await hosts[1].run()
    assert not folders[1].exists()


@pytest.mark.parametrize("step", ["placement_group", "placement_group_table"])
@pytest.mark.parametrize("failure", [RayError("the head is away"), KeyError("bundles"), OSError("gone")])
async def test_where_ray_fails_there_is_no_place_for_now(
    step: str, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that the supervisor meets with another try."""
    removed: list[object] = []

    def fails(*args: object, **options: object) -> object:
        raise failure

    group = SimpleNamespace(wait=lambda seconds: True)
    monkeypatch.setattr(places, "placement_group", lambda *args, **options: group)
    monkeypatch.setattr(places, "remove_placement_group", removed.append)
    monkeypatch.setattr(places, step, fails)
    order = msgspec.json.decode(an_order(Path()), type=Order)
    taken = places.Places(Share(1.0, 0), dict)
    with pytest.raises(EngineFailed, match="Ray has no place for replica 3") as failed:
        await RayLauncher(3, order, taken, Credentials("", "", ""), None, iter([1])).start(Path())
    assert failed.value.kind == "lost"
    assert removed == ([group] if step == "placement_group_table" else [])


async def test_where_ray_fails_no_server_is_found_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> object:
        raise RayError("the head is away")

    monkeypatch.setattr(registry.ray, "get_actor", fails)
    with pytest.raises(EngineFailed, match="Ray cannot tell of the server named x: the head is away"):
        registry.find("x")


@pytest.mark.parametrize("changed", [{"replicas": 2}, {"model": Model("elsewhere", "dummy", "m")}])
async def test_a_server_that_is_another_one_now_ends_the_gateway(
    changed: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = Known(Model(str(tmp_path), "dummy", "m"), 1, Credentials("", "", ""))
    monkeypatch.setattr(attached, "find", lambda name: object())
    monkeypatch.setattr(attached, "ask_known", lambda name: msgspec.structs.replace(known, **changed))
    observer = RecordingObserver()
    supervisor = Supervisor(attached.AttachLauncher("x", 0, known), SocketEngine(observer), observer, tmp_path)
    async with asyncio.timeout(10):
        for ending in (supervisor.start(print), supervisor.watch()):
            with pytest.raises(ServerReplaced, match="the server named x has another model or number of replicas"):
                await ending
        await supervisor.close()


async def test_a_place_is_given_back_though_its_host_is_not_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    removed: list[object] = []
    left: list[bool] = []

    def kill(host: object) -> None:
        raise RayError("the head is away")

    monkeypatch.setattr(places.ray, "kill", kill)
    monkeypatch.setattr(places, "remove_placement_group", removed.append)
    group = cast(PlacementGroup, object())
    place = places.Place(group, "a", object(), lambda: left.append(True))
    await place.leave()
    await place.leave()
    assert (removed, left) == ([group], [True])
    assert "was not ended: the head is away" in caplog.text


async def test_a_head_that_does_not_answer_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, turns = threading.Event(), 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(places.ray, "kill", lambda host: answers.wait(30))
    monkeypatch.setattr(places, "remove_placement_group", lambda group: None)
    monkeypatch.setattr(places, "LEAVE_S", 0.05)
    turning = asyncio.create_task(turn())
    await places.Place(cast(PlacementGroup, object()), "a", object(), lambda: None).leave()
    assert turns > 1 and not answers.is_set()
    assert "Ray has not taken a place back" in caplog.text
    turning.cancel()
    answers.set()


@dataclass
class Remote:
    """A method of an actor."""

    answer: Answer | None  # None: never

    async def remote(self, order: bytes) -> bytes:
        if self.answer is None:
            await asyncio.Event().wait()
        return msgspec.json.encode(self.answer)


@dataclass
class StandingPlace:
    host: object
    left: bool = False

    async def leave(self) -> None:
        self.left = True


@dataclass
class StandingPlaces:
    place: StandingPlace

    async def take(self, replica: int) -> StandingPlace:
        return self.place


@pytest.mark.parametrize(
    ("fetch", "start", "words"),
    [
        (None, Started("a", 1, "n"), "did not have its model within 0.5 s"),
        (Refused("model", "it is nowhere"), Started("a", 1, "n"), "it is nowhere"),
        (Fetched(), None, "did not start within 0.01 s"),
    ],
)
async def test_the_model_and_the_engine_have_a_limit_each(
    fetch: Answer | None, start: Answer | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "FETCH_S", 0.5)
    monkeypatch.setattr(launcher, "START_S", 0.01)
    place = StandingPlace(SimpleNamespace(fetch=Remote(fetch), start=Remote(start)))
    order = msgspec.json.decode(an_order(Path()), type=Order)
    taken = cast(places.Places, StandingPlaces(place))
    with pytest.raises(EngineFailed, match=words):
        await RayLauncher(0, order, taken, Credentials("", "", ""), None, iter([1])).start(Path())
    assert place.left


@dataclass
class Engine:
    node_id: str
    left: bool = False

    def leave(self) -> bool:
        before, self.left = self.left, True
        return not before


@dataclass
class Launcher:
    replica: int
    engine: Engine | None


@dataclass
class Ray:
    """Tells of nodes once a look; what it has not been told to say is silence."""

    said: list[frozenset[str]] = field(default_factory=list)

    def draining(self) -> frozenset[str]:
        if not self.said:
            raise AttributeError("get_draining_nodes")
        return self.said.pop(0)


async def test_engines_leave_a_node_that_is_to_be_removed_one_after_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(draining, "PERIOD_S", 0.0)
    launchers = [Launcher(0, Engine("a")), Launcher(1, Engine("b")), Launcher(2, None), Launcher(3, Engine("b"))]
    seen: list[list[int]] = []

    def look() -> frozenset[str]:
        seen.append([each.replica for each in launchers if each.engine is not None and each.engine.left])
        return ray.draining()

    ray = Ray([frozenset(), frozenset({"b"}), frozenset({"b"}), frozenset({"b"})])
    async with asyncio.timeout(10):
        await leave_draining(cast(list[RayLauncher], launchers), look)
    assert seen == [[], [], [1], [1, 3], [1, 3]]
    assert "this version of Ray does not tell" in caplog.text
