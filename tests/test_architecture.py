"""Who may import whom: gateway -> scheduler <- engine, the flags of bench and chat, and nothing else across rooms."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("gateway", "scheduler", "engine", "bench", "chat")
ALLOWED_ROOMS = {
    "gateway": {"gateway", "scheduler.protocol", "scheduler.types", "scheduler.plan", "bench.flags", "chat.flags"},
    "scheduler": {"scheduler"},
    "engine": {"engine", "scheduler"},
    "bench": {"bench"},
    "chat": {"chat"},
}
CLIENT = {"torch", "numba", "starlette", "hypercorn", "tiktoken", "jinja2", "prometheus_client", "aiohttp", "httpx"}
FORBIDDEN_LIBRARIES = {
    "gateway": {"torch", "numba", "safetensors"},
    "engine": {"starlette", "hypercorn", "sse_starlette", "tiktoken", "jinja2", "typer", "rich", "prometheus_client"},
    "bench": CLIENT,
    "chat": CLIENT,
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def offence(room: str, module: str) -> bool:
    top = module.split(".")[0]
    if top in ROOMS:
        return not within(module, ALLOWED_ROOMS[room])
    if room == "scheduler":
        return top not in sys.stdlib_module_names and top != "msgspec"
    return within(module, FORBIDDEN_LIBRARIES[room])


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    edges = [(path.relative_to(ROOT), module) for path in files for module in imports(path)]
    assert [edge for edge in edges if offence(room, edge[1])] == []


@pytest.mark.parametrize(
    ("room", "module"),
    [
        ("gateway", "engine.loop"),
        ("gateway", "torch"),
        ("gateway", "scheduler.scheduler"),
        ("scheduler", "torch.nn"),
        ("scheduler", "gateway.errors"),
        ("gateway", "bench.run"),
        ("engine", "bench.measure"),
        ("bench", "gateway.config"),
        ("bench", "scheduler.types"),
        ("bench", "httpx"),
        ("chat", "gateway.config"),
        ("chat", "bench.http1"),
        ("chat", "httpx"),
        ("gateway", "chat.run"),
        ("engine", "chat.client"),
        ("engine", "gateway.answers.text"),
        ("engine", "tiktoken"),
    ],
)
def test_the_walk_notices_a_forbidden_edge(room: str, module: str) -> None:
    assert offence(room, module)


@pytest.mark.parametrize("module", ["random", "time", "socket", "threading", "asyncio"])
def test_scheduler_has_no_clock_io_or_randomness(module: str) -> None:
    used = {name for path in (ROOT / "scheduler").rglob("*.py") for name in imports(path)}
    assert not within(module, used)


def test_scheduler_runs_where_torch_cannot_be_imported() -> None:
    """Every module, and what drives all of them together; their own tests need not run twice."""
    together = [f"tests/scheduler/test_{name}.py" for name in ("scheduler", "simulate", "grammar", "prompts", "stats")]
    modules = [f"scheduler.{path.stem}" for path in (ROOT / "scheduler").glob("*.py") if path.stem != "__init__"]
    code = f"""
import importlib, sys
sys.modules["torch"] = None
for name in {modules}:
    importlib.import_module(name)
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *{together}]))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
