"""A real Prometheus scrapes the server under load and when its engine dies. What it stores is what the clients saw,
and every panel of our dashboard, and of vLLM's, finds data. Needs Debian's package prometheus."""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from grafana.panels import ROWS
from tests.fixtures.server import MODEL, PATIENCE_S, ROOT, Metrics, RunningServer, eventually, serving

NUM_REQUESTS = 500
NUM_WORKERS = 16
NUM_SURVIVORS = 4  # streams after those, under which the engine is killed
KEYS = {"team-a": "sk-a" * 8, "team-b": "sk-b" * 8}
OPERATOR = "sk-o" * 8
GRAFANA = ROOT / "grafana"
WINDOW = "5m"
VLLM = 'model_name="$model_name"'
QUANTILES = (0.99, 0.95, 0.9, 0.5)


def vllm_queries() -> list[str]:
    """What the panels of vLLM's main dashboard ask."""
    found = [f"rate(vllm:{name}_total{{{VLLM}}}[{WINDOW}])" for name in ("prompt_tokens", "generation_tokens")]
    for name in ("e2e_request_latency", "inter_token_latency", "time_to_first_token"):
        buckets = f"sum by (le) (rate(vllm:{name}_seconds_bucket{{{VLLM}}}[{WINDOW}]))"
        found += [f"histogram_quantile({q}, {buckets})" for q in QUANTILES]
        sums, counts = (f"rate(vllm:{name}_seconds_{part}{{{VLLM}}}[{WINDOW}])" for part in ("sum", "count"))
        found.append(f"{sums} / {counts}")
    found += [
        f"vllm:{name}{{{VLLM}}}" for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    ]
    for name in ("request_prompt_tokens", "request_generation_tokens"):
        found.append(f"sum by (le) (increase(vllm:{name}_bucket{{{VLLM}}}[{WINDOW}]))")
    found.append(f"sum by (finished_reason) (increase(vllm:request_success_total{{{VLLM}}}[{WINDOW}]))")
    for name in ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds", "max_num_generation_tokens"):
        found.append(f"rate(vllm:request_{name}_sum{{{VLLM}}}[{WINDOW}])")
    return found


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expr: str) -> list[float]:
        """Values that are numbers."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=PATIENCE_S).json()
        assert answer["status"] == "success", answer
        values = [float(series["value"][1]) for series in answer["data"]["result"]]
        return [value for value in values if value == value]

    def exemplars(self, name: str) -> list[str]:
        params = {"query": name, "start": "0", "end": "9999999999"}
        answer = httpx.get(f"{self.url}/api/v1/query_exemplars", params=params, timeout=PATIENCE_S).json()
        return [each["labels"]["request_id"] for series in answer["data"] for each in series["exemplars"]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def prometheus(server: RunningServer, folder: Path) -> Iterator[Prometheus]:
    """With our own configuration; only the target, the key and the interval are others."""
    config = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [":".join(map(str, server.address))]}]
    job["authorization"] = {"credentials": OPERATOR}
    shutil.copy(GRAFANA / "rules.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    found = Prometheus(f"http://127.0.0.1:{port}")

    def ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        try:
            return httpx.get(f"{found.url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(ready, "Prometheus is ready")
        yield found
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@dataclass
class Seen:
    """The clients' own counts."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # by endpoint and outcome
    finishes: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    cut: set[str] = field(default_factory=set)  # ids of requests that were left


class Clients:
    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self.seen = Seen()
        self._rng = random.Random(3)

    async def run(self) -> Seen:
        kinds = self._rng.choices(
            ("whole", "stream", "cut", "invalid", "unknown", "stranger"), (30, 30, 10, 5, 5, 5), k=NUM_REQUESTS
        )
        numbers = iter(enumerate(kinds))
        async with httpx.AsyncClient(base_url=self._server.url, timeout=PATIENCE_S) as client:
            await asyncio.gather(*(self._worker(client, numbers) for _ in range(NUM_WORKERS)))
            await self._survive(client)
        return self.seen

    async def _worker(self, client: httpx.AsyncClient, numbers: Iterator[tuple[int, str]]) -> None:
        for number, kind in numbers:
            chat, n = self._rng.random() < 0.5, self._rng.choice((1, 1, 2))
            name, path = ("chat", "/v1/chat/completions") if chat else ("completions", "/v1/completions")
            text = " ".join(self._rng.choices(("water", "wheel", "mill", "river"), k=self._rng.randint(1, 30)))
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
            body = {"model": MODEL, "max_tokens": self._rng.randint(1, 8), "n": n, "ignore_eos": True, **asked}
            key = self._rng.choice(list(KEYS))
            headers = {"authorization": f"Bearer {KEYS[key]}", "x-request-id": f"r{number}"}
            await getattr(self, f"_{kind}")(client, name, path, body, headers)
            if kind != "stranger":
                self.seen.keys[key] += 1

    def _count(self, name: str, usage: dict[str, int], finishes: list[str]) -> None:
        self.seen.outcomes[name, "length" if "length" in finishes else "stop"] += 1
        self.seen.finishes.update(finishes)
        self.seen.tokens["prompt"] += usage["prompt_tokens"]
        self.seen.tokens["generation"] += usage["completion_tokens"]

    async def _whole(self, client: httpx.AsyncClient, name: str, path: str, body: Any, headers: dict[str, str]) -> None:
        answer = (await client.post(path, json=body, headers=headers)).raise_for_status().json()
        self._count(name, answer["usage"], [choice["finish_reason"] for choice in answer["choices"]])

    async def _stream(
        self, client: httpx.AsyncClient, name: str, path: str, body: Any, headers: dict[str, str]
    ) -> None:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        answer = (await client.post(path, json=body, headers=headers)).raise_for_status()
        data = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
        assert data.pop() == "[DONE]"
        chunks = [json.loads(each) for each in data]
        finishes = [
            choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]
        ]
        self._count(name, chunks[-1]["usage"], finishes)

    async def _cut(self, client: httpx.AsyncClient, name: str, path: str, body: Any, headers: dict[str, str]) -> None:
        body = {**body, "stream": True, "max_tokens": 500, "n": 1}
        async with client.stream("POST", path, json=body, headers=headers) as answer:
            answer.raise_for_status()
            async for _ in answer.aiter_lines():
                break
        self.seen.outcomes[name, "client_closed"] += 1
        self.seen.finishes["abort"] += 1
        self.seen.cut.add(headers["x-request-id"])

    async def _survive(self, client: httpx.AsyncClient) -> None:
        """Streams whose engine is killed when all have begun."""
        engine = self._server.engine_pid()
        begun: set[int] = set()

        async def stream(number: int) -> None:
            body = {"model": MODEL, "prompt": "water " * number, "max_tokens": 100, "ignore_eos": True, "stream": True}
            body["stream_options"] = {"include_usage": True}
            headers = {"authorization": f"Bearer {KEYS['team-a']}", "x-request-id": f"s{number}"}
            chunks = []
            async with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
                async for line in answer.raise_for_status().aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    chunks.append(json.loads(line.removeprefix("data: ")))
                    if number not in begun:
                        begun.add(number)
                        if len(begun) == NUM_SURVIVORS:
                            os.kill(engine, signal.SIGKILL)
            finishes = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
            self._count("completions", chunks[-1]["usage"], [finish for finish in finishes if finish])

        await asyncio.gather(*(stream(1 + number) for number in range(NUM_SURVIVORS)))
        self.seen.keys["team-a"] += NUM_SURVIVORS

    async def _invalid(
        self, client: httpx.AsyncClient, name: str, path: str, body: Any, headers: dict[str, str]
    ) -> None:
        assert (await client.post(path, json={**body, "temperature": 9}, headers=headers)).status_code == 400
        self.seen.outcomes[name, "invalid"] += 1

    async def _unknown(
        self, client: httpx.AsyncClient, name: str, path: str, body: Any, headers: dict[str, str]
    ) -> None:
        assert (await client.post(path, json={**body, "model": "another"}, headers=headers)).status_code == 404
        self.seen.outcomes[name, "invalid"] += 1

    async def _stranger(
        self, client: httpx.AsyncClient, name: str, path: str, body: Any, headers: dict[str, str]
    ) -> None:
        assert (await client.post(path, json=body)).status_code == 401
        self.seen.outcomes["stranger", "invalid"] += 1


@dataclass(frozen=True)
class Loaded:
    """After the load."""

    server: RunningServer
    prometheus: Prometheus
    seen: Seen
    page: str
    metrics: Metrics
    log: list[dict[str, Any]]  # the access log's lines


@pytest.fixture(scope="module")
def loaded(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = tmp_path_factory.mktemp("prometheus")
    keys = folder / "keys"
    keys.write_text("".join(f"{key} name={name}\n" for name, key in {**KEYS, "operator": OPERATOR}.items()))
    flags = ("--vllm-metric-names", "--api-key-file", str(keys), "--max-seqs", "8", "--dtype", "auto")
    with serving(folder, *flags) as server, prometheus(server, folder) as found:
        eventually(lambda: found.query("headrace_engine_up"), "the first scrape")
        seen = asyncio.run(Clients(server).run())
        headers = {"authorization": f"Bearer {OPERATOR}"}

        def idle() -> str:
            page = httpx.get(f"{server.url}/metrics", headers=headers, timeout=PATIENCE_S).text
            return page if Metrics.parse(page).is_idle else ""

        page = eventually(idle, "nothing is held any more")
        num_requests = Metrics.parse(page)["requests_total"]
        eventually(
            lambda: (
                sum(found.query('headrace_requests_total{endpoint!="metrics"}'))
                == sum(
                    value
                    for name, value in Metrics.parse(page).items()
                    if name.startswith("requests_total{") and "endpoint=metrics" not in name
                )
            ),
            f"the last scrape, of {num_requests} requests",
        )
        lines = [json.loads(line[line.index("{") :]) for line in server.log.split("\n") if '"request_id"' in line]
        yield Loaded(server, found, seen, page, Metrics.parse(page), lines)


@pytest.mark.alone  # the load: an alert is about first tokens that come late
def test_counters_are_the_clients_own_counts(loaded: Loaded) -> None:
    seen, metrics = loaded.seen, loaded.metrics
    for (name, outcome), count in seen.outcomes.items():
        if name != "stranger":
            assert metrics[f"requests_total{{endpoint={name},outcome={outcome}}}"] == count, (name, outcome)
    assert metrics["rejections_total{reason=unauthorized}"] == seen.outcomes["stranger", "invalid"]
    for reason in ("length", "stop", "abort", "error"):
        assert metrics[f"choices_total{{finish_reason={reason}}}"] == seen.finishes[reason], reason
    # What had been generated for those that left, only the log can tell.
    left = [line for line in loaded.log if line["request_id"] in seen.cut]
    assert len(left) == len(seen.cut)
    generated = seen.tokens["generation"] + sum(line["generated_tokens"] for line in left)
    assert metrics["generation_tokens_total"] == generated
    assert metrics["prompt_tokens_total"] == seen.tokens["prompt"] + sum(line["prompt_tokens"] for line in left)
    assert {key: metrics[f"tenant_requests_total{{key={key}}}"] for key in KEYS} == seen.keys
    assert metrics["tenant_generation_tokens_total"] == generated
    assert metrics["engine_restarts_total"] == 1
    assert metrics["migrations_total{outcome=moved}"] == metrics["migrations_total"] == NUM_SURVIVORS
    assert metrics["migration_seconds_count"] == NUM_SURVIVORS


def panel_queries() -> list[Any]:
    """All but those of GPUs, which need one."""
    return [
        pytest.param(query.expr, id=f"{panel.title}-{index}")
        for row in ROWS
        for panel in row.panels
        for index, query in enumerate(panel.queries)
        if "headrace_gpu_" not in query.expr
    ]


@pytest.mark.parametrize("expr", panel_queries())
def test_every_panel_finds_data(loaded: Loaded, expr: str) -> None:
    for variable, chosen in (("$model", ".*"), ("$instance", ".*"), ("$engine", ".*")):
        expr = expr.replace(f'"{variable}"', f'"{chosen}"')
    expr = expr.replace("$__rate_interval", WINDOW).replace("$__range", WINDOW)
    assert "$" not in expr
    assert loaded.prometheus.query(expr)


@pytest.mark.parametrize("expr", vllm_queries())
def test_every_panel_of_vllms_dashboard_finds_data(loaded: Loaded, expr: str) -> None:
    assert loaded.prometheus.query(expr.replace("$model_name", MODEL))


def test_a_slow_bucket_leads_to_its_request(loaded: Loaded) -> None:
    named = set(loaded.prometheus.exemplars("headrace_ttft_seconds_bucket"))
    assert named & {line["request_id"] for line in loaded.log}


def test_rules_record_and_nothing_fires(loaded: Loaded) -> None:
    recorded = "headrace:requests_failed:ratio_rate5m"
    assert eventually(lambda: loaded.prometheus.query(recorded), "a recorded series") == [0.0]
    assert loaded.prometheus.query('ALERTS{alertstate="firing"}') == []


def promtool(*arguments: str, stdin: str = "") -> str:
    """What it says; raises if it is not content."""
    ran = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_promtool_likes_our_series(loaded: Loaded) -> None:
    ours = "".join(line + "\n" for line in loaded.page.splitlines() if "vllm:" not in line)
    assert promtool("check", "metrics", stdin=ours) == ""


def test_promtool_likes_rules_and_configuration() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(GRAFANA / "rules.yml"))
    assert "SUCCESS" in promtool("check", "config", str(GRAFANA / "prometheus.yml"))


def test_each_alert_fires_where_it_should_and_only_there() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(ROOT / "tests/grafana/rules_test.yml"))
