"""Engines drained, resumed and reloaded, one at a time: real processes of the fake engine, and the paths of /admin."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.answers.live import Live
from gateway.config import Config, config_of
from gateway.engines.client import EngineUnavailable
from gateway.engines.handles import EngineLauncher
from gateway.engines.replicas import Replicas
from gateway.errors import ModelError
from gateway.http.app import create_app
from gateway.http.keys import Keys, KeysError, parse_line
from gateway.http.ratelimit import Accounts
from gateway.metrics import Metrics
from gateway.model.digest import tokenizer_digest
from gateway.model.resolve import ResolvedModel
from gateway.rolling import commands, routes
from gateway.rolling.change import Change, Refused
from gateway.rolling.rolling import Rolling
from gateway.rolling.settings import CHANGEABLE, Settings, Wiring, changeable, changed
from gateway.siblings.link import Link
from gateway.siblings.messages import Ask
from gateway.timeline.store import Timelines
from scheduler.protocol import Submit
from scheduler.types import SamplingParams
from tests.fixtures.engines import PATIENCE_S, RecordingObserver, RecordingSink, fake_setup
from tests.fixtures.fake_engine import Order
from tests.fixtures.fakes import client_of, post, toy_services


class Others:
    """Other gateways, that only note what they are told."""

    def __init__(self, num_moved: int) -> None:
        self.told: list[str] = []
        self.num_moved = num_moved

    async def shut(self, engine: int, pause: bool) -> None:
        self.told.append(f"shut {engine}" + (" for a moment" if pause else ""))

    async def move(self, engine: int, wait_s: float, message: str) -> int:
        self.told.append(f"move {engine} after {wait_s:g} s")
        return self.num_moved

    async def reopen(self, engine: int) -> None:
        self.told.append(f"reopen {engine}")


def folder_of(path: Path, tokens: str = "abc", **config: Any) -> Path:
    """A model, as far as a gateway reads it."""
    path.mkdir()
    (path / "tokenizer.json").write_text(tokens)
    (path / "config.json").write_text(json.dumps({"eos_token_id": 2, **config}))
    return path


class World:
    """Engines of the model that the configuration names; --model, by its name, says how its engines begin."""

    def __init__(self, folder: Path, count: int, **options: Any) -> None:
        self.folder = folder
        self.observers = [RecordingObserver() for _ in range(count)]
        self.replicas = Replicas([fake_setup("serve") for _ in range(count)], self.observers)
        self.engines = self.replicas.engines
        self.others = Others(num_moved=1)
        self.config = Config(model="serve", **options)
        self.num_stopped = 0
        self.rolling: Rolling

    async def start(self) -> None:
        folder_of(self.folder / "serve", tokens="abc")
        await self.replicas.start(lambda progress: None)
        settings = Settings(self.config, self.resolve(self.config))
        wiring = Wiring(self.resolve, self.launchers)
        self.rolling = Rolling(self.replicas, self.others, settings, wiring, lambda: self.num_stopped > 0)

    def resolve(self, config: Config) -> ResolvedModel:
        name = config.model.partition(":")[0]
        if not (self.folder / name).is_dir():
            raise ModelError(f"no model {name!r}")
        return ResolvedModel(self.folder / name, "safetensors", name)

    def launchers(self, settings: Settings) -> Sequence[EngineLauncher]:
        how = settings.config.model.split(":")
        asked = [fake_setup(*how) for _ in self.engines]
        return [
            replace(each, config=msgspec.structs.replace(each.config, max_seqs=settings.config.max_seqs or 7))
            for each in asked
        ]

    async def ask(self, number: int, *prompt: int) -> RecordingSink:
        engine, sink = self.engines[number], RecordingSink()
        request = Submit(engine.new_ids(1), list(prompt), SamplingParams(max_tokens=99), [0])
        await engine.submit(request, sink)
        return sink

    @property
    def states(self) -> list[str]:
        return [each.state for each in self.rolling.engines()]


@asynccontextmanager
async def world(folder: Path, count: int = 2, **options: Any) -> AsyncIterator[World]:
    made = World(folder, count, **options)
    try:
        await made.start()
        yield made
        await made.rolling.close()
    finally:
        await made.replicas.close()


async def steps(change: Change) -> list[str]:
    """Its phases but the first, each with its engine; the last one's message, where it failed."""
    async with asyncio.timeout(PATIENCE_S):
        lines = [line async for line in change.lines(PATIENCE_S)]
    told = [line.phase if line.engine is None else f"{line.phase} {line.engine}" for line in lines[1:]]
    return [*told[:-1], lines[-1].message] if lines[-1].phase == "failed" else told


CLOSE = ["closing", "moving", "stopping"]


def of(number: int, *phases: str) -> list[str]:
    return [f"{phase} {number}" for phase in phases]


async def test_a_drained_engine_has_nothing_left_and_comes_back_when_it_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as each:
        sink = await each.ask(0, Order.HANG)
        pid = each.rolling.engines()[0].pid
        change = each.rolling.drain(0, force=False)
        assert await steps(change) == [*of(0, *CLOSE, "drained"), "done"]
        assert "2 requests" in next(line.message for line in change._lines if line.phase == "moving")
        ((death, _),) = sink.lost
        assert death.planned
        assert each.others.told == ["shut 0", "move 0 after 0 s"]
        assert (each.states, each.rolling.engines()[0].pid) == (["drained", "up"], None)
        with pytest.raises(EngineUnavailable):
            await each.ask(0, 1)
        assert await steps(each.rolling.resume(0)) == [*of(0, "starting", "up"), "done"]
        assert (each.states, each.others.told[2:]) == (["up", "up"], ["reopen 0"])
        assert each.rolling.engines()[0].pid not in (None, pid)
        await (await each.ask(0, 1, 2)).finished()
        assert each.observers[0].num_restarts == 0


async def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as each:
        rolling = each.rolling
        for act, code in (
            (lambda: rolling.drain(2, force=True), "engine_not_found"),
            (lambda: rolling.resume(1), "wrong_state"),
            (lambda: rolling.reload({"port": 1}), "reload_refused"),
        ):
            with pytest.raises(Refused) as refused:
                act()
            assert refused.value.code == code
        under_way = rolling.drain(1, force=False)
        with pytest.raises(Refused, match=r"A drain is under way: a drain begins\.") as refused:
            rolling.reload({})
        assert refused.value.code == "change_under_way"
        await steps(under_way)
        for number, code in ((1, "wrong_state"), (0, "last_engine")):
            with pytest.raises(Refused) as refused:
                rolling.drain(number, force=False)
            assert refused.value.code == code
        assert each.states == ["up", "drained"]
        await steps(rolling.drain(0, force=True))
        assert each.states == ["drained", "drained"]
        assert each.replicas.client.ready is None and not each.replicas.client.is_paused


async def test_without_migration_what_runs_is_given_time(tmp_path: Path) -> None:
    async with world(tmp_path, migration=False, drain_timeout=0.5) as each:
        endless, ending = await each.ask(0, Order.HANG), await each.ask(1, Order.TOIL, 4, 0, 0)
        await steps(each.rolling.drain(1, force=False))
        assert ending.outputs[-1].finish and not ending.failures
        await steps(each.rolling.drain(0, force=True))
        assert len(endless.failures) == 1
        assert each.others.told[1::2] == ["move 1 after 0.5 s", "move 0 after 0.5 s"]


async def test_a_reload_goes_from_engine_to_engine_and_requests_wait_where_there_is_no_other(tmp_path: Path) -> None:
    async with world(tmp_path) as each:
        await steps(each.rolling.drain(0, force=False))
        change = each.rolling.reload({"max_seqs": "5", "kv_cache_memory": "1MiB"})
        while each.states[1] != "reloading":
            await asyncio.sleep(0.01)
        client = each.replicas.client
        assert client.is_paused and client.ready is not None
        assert await steps(change) == ["drained 0", *of(1, *CLOSE, "starting", "up"), "done"]
        assert not client.is_paused and client.ready is not None and client.ready.max_seqs == 5
        await steps(each.rolling.resume(0))
        shown = each.rolling.engines()
        assert [(engine.max_seqs, engine.settings["kv_cache_memory"]) for engine in shown] == [(5, 1 << 20)] * 2
        change = each.rolling.reload({"dtype": "float32"})  # what is not given stays
        await steps(change)
        assert [engine.max_seqs for engine in each.rolling.engines()] == [5, 5]
        assert (each.rolling.settings.config.max_seqs, each.rolling.settings.config.dtype) == (5, "float32")
        told = [f"{what} {number}" for number in (0, 1) for what in ("shut", "move", "reopen")]
        assert [" ".join(each.split()[:2]) for each in each.others.told[-6:]] == told


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crash:MemoryError", "the engine ended with code 5: MemoryError"),
        ("fatal:model:no tensor named lm_head", "no tensor named lm_head"),
        ("foreign", "its vocabulary has 99 tokens, and that which is served 49152"),
    ],
)
async def test_where_the_new_does_not_start_the_old_comes_back(how: str, message: str, tmp_path: Path) -> None:
    async with world(tmp_path) as each:
        folder_of(tmp_path / how.partition(":")[0])
        pids = [engine.pid for engine in each.rolling.engines()]
        change = each.rolling.reload({"model": how, "max_seqs": 3})
        phases = [*of(0, *CLOSE, "starting", "failed_start", "starting", "up")]
        assert await steps(change) == [*phases, f"engine 0 does not start anew: {message}"]
        shown = each.rolling.engines()
        assert [(engine.state, engine.max_seqs, engine.settings["model"]) for engine in shown] == [
            ("up", 7, "serve")
        ] * 2
        assert shown[1].pid == pids[1]
        assert each.rolling.settings.resolved.name == "serve"
        await steps(each.rolling.reload({}))
        assert [engine.max_seqs for engine in each.rolling.engines()] == [7, 7]


async def test_where_the_old_does_not_start_either_it_is_tried_again_and_again(tmp_path: Path) -> None:
    async with world(tmp_path, 1) as each:
        mark = tmp_path / "mark"
        folder_of(tmp_path / "crash-after")
        await steps(each.rolling.reload({"model": f"crash-after:{mark}"}))  # which serves once
        told = await steps(each.rolling.reload({"model": f"crash-after:{mark}", "max_seqs": 2}))
        assert told[:-1] == of(0, *CLOSE, "starting", "failed_start", "starting", "failed_start")
        assert each.states == ["down"]
        with pytest.raises(EngineUnavailable):
            await each.ask(0, 1)
        async with asyncio.timeout(PATIENCE_S):
            while each.observers[0].num_restarts == 0:
                await asyncio.sleep(0.01)
            mark.unlink()
            await each.replicas.client.available()


async def test_a_tokenizer_that_is_another_is_refused_before_anything_happens(tmp_path: Path) -> None:
    async with world(tmp_path) as each:
        folder_of(tmp_path / "stubborn", tokens="abd")
        folder_of(tmp_path / "foreign", eos_token_id=3)
        for model, message in (
            ("stubborn", "stubborn has another tokenizer or chat template than the one that is served"),
            ("foreign", "foreign has another tokenizer or chat template"),
            ("nothing", "no model 'nothing'."),
        ):
            change = each.rolling.reload({"model": model})
            with pytest.raises(Refused, match=message) as refused:
                await change.begun(PATIENCE_S)
            assert (refused.value.code, refused.value.param) == ("reload_refused", "model")
        assert each.others.told == [] and each.states == ["up", "up"]


async def test_a_server_that_ends_begins_with_no_other_engine(tmp_path: Path) -> None:
    async with world(tmp_path) as each:
        each.num_stopped = 1
        assert await steps(each.rolling.reload({})) == ["the server is shutting down"]
        assert each.others.told == []


async def test_nothing_of_it_outlives_the_server(tmp_path: Path) -> None:
    async with world(tmp_path) as each:
        folder_of(tmp_path / "silent")
        change = each.rolling.reload({"model": "silent"})
        await change.begun(PATIENCE_S)
        await each.rolling.close()
        assert (await steps(change))[-1] == "the server ends"


# what may be asked for


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"port": 9}, "port", "port cannot be changed while the server runs."),
        ({"max_seq": 9}, None, "unknown option 'max_seq'; did you mean 'max_seqs'?"),
        ({"max_seqs": "many"}, "max_seqs", "max_seqs: expected int, not 'many'."),
        ({"kv_cache_memory": "2 houses"}, "kv_cache_memory", "kv_cache_memory: expected a size"),
        ({"dtype": "int4"}, "dtype", "dtype: expected one of"),
    ],
)
def test_an_option_that_is_wrong_is_named(given: dict[str, Any], param: str | None, message: str) -> None:
    with pytest.raises(Exception) as refused:
        changed(Config(api_key="secret"), given)
    assert refused.value.param == param  # type: ignore[attr-defined]
    assert message in str(refused.value)


def test_what_is_not_given_stays() -> None:
    before = config_of({"api_key": "secret", "max_seqs": 3, "limits": "nanochat", "max_message_chars": 0})
    assert changed(before, {"max_seqs": "5"}) == msgspec.structs.replace(before, max_seqs=5)
    assert changed(before, {}) == before
    assert {option.name for option in changeable()} == set(CHANGEABLE)


def test_one_tokenizer_has_one_digest_wherever_it_is(tmp_path: Path, gguf_path: Path) -> None:
    def digest(path: Path, **more: Any) -> bytes:
        return tokenizer_digest(ResolvedModel(path, "safetensors", "name", **more))

    first, second = folder_of(tmp_path / "a", torch_dtype="a"), folder_of(tmp_path / "b", torch_dtype="b")
    assert digest(first) == digest(second) == digest(tmp_path / "elsewhere", tokenizer=first)
    (second / "chat_template.jinja").write_text("{{ messages }}")
    assert digest(first) != digest(second)
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(gguf_path.read_bytes()[: 4 << 20])
    assert tokenizer_digest(ResolvedModel(moved, "gguf", "x")) == tokenizer_digest(
        ResolvedModel(gguf_path, "gguf", "y")
    )
    for broken in ("nothing.gguf", "nothing/at/all"):
        with pytest.raises(ModelError):
            digest(tmp_path / broken)


# /admin


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as each:
        yield each


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert (answer.status_code, answer.headers["content-type"]) == (200, routes.LINES)
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_the_paths_of_changes(served: World) -> None:
    async with client_of(replace(toy_services(), rolling=served.rolling)) as client:
        told = (await client.get("/admin/engines")).json()
        assert [engine["state"] for engine in told["engines"]] == ["up", "up"] and told["change"] is None
        assert told["engines"][0]["settings"]["model"] == "serve" and told["engines"][0]["since_s"] >= 0
        lines = lines_of(await client.post("/admin/engines/0/drain"))
        assert [lines[0]["phase"], lines[-1]["phase"], lines[-2]["engine"]] == ["checking", "done", 0]
        for path, status, code in (
            ("/admin/engines/1/drain", 409, "last_engine"),
            ("/admin/engines/1/resume", 409, "wrong_state"),
            ("/admin/engines/9/drain", 404, "engine_not_found"),
            ("/admin/engines/x/resume", 404, "engine_not_found"),
        ):
            answer = await client.post(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert lines_of(await client.post("/admin/engines/1/drain?force=true"))[-1]["phase"] == "done"
        for number in (0, 1):
            assert lines_of(await client.post(f"/admin/engines/{number}/resume"))[-1]["phase"] == "done"
        assert lines_of(await client.post("/admin/reload", json={"max_seqs": 4}))[-1]["phase"] == "done"
        for body, param in (
            ({"port": 3}, "port"),
            ({"model": "nothing"}, "model"),
            ({"max_seqs": None}, None),
            ([], None),
        ):
            answer = await client.post("/admin/reload", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert (await client.get("/admin/reload")).status_code == 405


async def test_who_waits_hears_that_it_goes_on(served: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "PING_S", 0.05)
    async with client_of(replace(toy_services(), rolling=served.rolling)) as client:
        lines = lines_of(await client.post("/admin/engines/0/drain"))
        waits = lines_of(await client.post("/admin/engines/0/resume"))
    assert lines[-1]["phase"] == "done"
    waiting = [line for line in waits if line["phase"] == "waiting"]
    assert waiting and waiting[0]["message"] == "engine 0 is started"
    assert [line["seconds"] for line in waits] == sorted(line["seconds"] for line in waits)


async def test_who_leaves_does_not_undo_it(served: World) -> None:
    app = create_app(replace(toy_services(), rolling=served.rolling))
    connection = post(app, "/admin/engines/1/drain", {})
    await connection.until(lambda connection: len(connection.sent) > 1)
    under_way = served.rolling.under_way
    connection.leave()
    await connection.end()
    assert under_way is not None and not under_way.is_over
    assert (await steps(under_way))[-1] == "done"
    assert served.states == ["up", "drained"]


async def test_it_is_off_as_a_rule_and_asks_for_an_admins_key(served: World, tmp_path: Path) -> None:
    asked = [("GET", "/admin/engines"), ("POST", "/admin/engines/0/drain"), ("POST", "/admin/reload")]
    async with client_of(toy_services()) as client:
        for method, path in asked:
            answer = await client.request(method, path, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_off")
    (tmp_path / "keys").write_text("sk-user name=user\nsk-admin name=root rpm=1 admin\n")
    services = toy_services()
    keys = Keys("sk-own", tmp_path / "keys", services.clock)
    async with client_of(replace(services, rolling=served.rolling, keys=keys)) as client:
        for key, status in (("", 401), ("sk-user", 403), ("sk-admin", 200), ("sk-own", 200), ("sk-admin", 200)):
            answer = await client.get("/admin/engines", headers={"x-api-key": key} if key else {})
            assert answer.status_code == status, key
        answer = await client.post("/admin/engines/0/drain", headers={"x-api-key": "sk-user"})
        assert answer.json()["error"]["code"] == "not_admin"
        for path in ("/admin/engines/0/drain", "/admin/engines/0/resume"):  # its limits are those of generating
            assert lines_of(await client.post(path, headers={"x-api-key": "sk-admin"}))[-1]["phase"] == "done"


def test_the_word_in_the_file_of_keys() -> None:
    key = parse_line("sk-one admin name=a")
    assert key is not None and key.admin and key.name == "a"
    plain = parse_line("sk-one name=admin")
    assert plain is not None and not plain.admin
    for line in ("sk-one admin admin", "sk-one admin=yes", "sk-one administrator"):
        with pytest.raises(KeysError):
            parse_line(line)


# the commands


def played(lines: list[dict[str, Any]], asked: list[tuple[Any, ...]]) -> Any:
    def answer(url: str, method: str, path: str, key: str, patience_s: float, body: bytes | None = None) -> Any:
        asked.append((url, method, path, key, body))
        yield from (json.dumps(line).encode() + b"\n" for line in lines)

    return answer


def test_commands_print_what_is_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[Any, ...]] = []
    lines = [
        {"phase": "closing", "message": "engine 1 takes no new work", "engine": 1, "seconds": 0.25},
        {"phase": "waiting", "message": "engine 1 takes no new work"},
        {"phase": "done", "message": "the drain is done", "seconds": 12.5},
    ]
    monkeypatch.setattr("gateway.remote.lines", played(lines, asked))
    assert commands.drain("http://host/", "sk", 1, force=True)
    assert capsys.readouterr().out == "    0.2 s  engine 1 takes no new work\n   12.5 s  the drain is done\n"
    assert asked.pop() == ("http://host", "POST", "/admin/engines/1/drain?force=true", "sk", b"")
    assert commands.reload("http://host", "", {"max_seqs": "4"})
    assert asked.pop()[2:] == ("/admin/reload", "", b'{"max_seqs":"4"}')
    monkeypatch.setattr("gateway.remote.lines", played([{"phase": "failed", "message": "no"}], asked))
    assert not commands.resume("http://host", "", 0)
    monkeypatch.setattr("gateway.remote.lines", played(lines[:1], asked))
    with pytest.raises(commands.remote.RemoteError, match="broke off"):
        commands.resume("http://host", "", 0)
    monkeypatch.setattr("gateway.remote.lines", played([{"phase": "odd"}], asked))
    with pytest.raises(commands.remote.RemoteError, match="does not answer as headrace does"):
        commands.resume("http://host", "", 0)


def test_how_engines_stand_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"since_s": 3.4, "restarts": 2, "requests": 0, "settings": {"model": "m"}}
    running = {"pid": 7, "device": "cpu", "max_model_len": 99, "max_seqs": 8}
    engines = [{"engine": 0, "state": "drained", **common}, {"engine": 1, "state": "up", **common, **running}]
    change = {"kind": "drain", "last": {"phase": "stopping", "message": "engine 0 is stopped"}}
    monkeypatch.setattr("gateway.remote.lines", played([{"engines": engines, "change": change}], []))
    commands.engines("http://host", "")
    assert capsys.readouterr().out.splitlines() == [
        "engine 0: drained for 3 s, 2 restarts, model m",
        "engine 1: up for 3 s, 2 restarts, process 7, cpu, 8 rows, 99 tokens a request, model m",
        "a drain is under way: engine 0 is stopped",
    ]


# other gateways


async def test_another_gateway_does_as_it_is_told(served: World, tmp_path: Path) -> None:
    """Over one of its engines; what it answers is not heard here."""
    metrics = Metrics(1)
    engine = served.engines[0]
    link = Link(1, tmp_path, metrics, Accounts(), Timelines(1), [engine], Live())
    sink = await served.ask(0, Order.HANG)
    link._take(Ask(1, "shut", engine=0, pause=True))
    assert engine.is_paused and not sink.failures
    link._take(Ask(2, "move", engine=0, message="moved"))
    await sink.failed()
    assert sink.failures[0].planned
    link._take(Ask(3, "open", engine=0, wait_s=1.0))
    assert engine.takes_work and not engine.is_draining
