"""headrace nanochat-web: nanochat's flags, short and long, and what they are to our Config."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway import cli
from gateway.config import Config, options
from tests.fixtures.server import run_to_end

COMMAND = "nanochat-web"
# As its script has them, -d as long as it had it; and what each is here.
FLAGS = [
    ("-n", "--num-gpus", "replicas"),
    ("-i", "--source", "source"),
    ("-t", "--temperature", "web_temperature"),
    ("-k", "--top-k", "web_top_k"),
    ("-m", "--max-tokens", "web_max_tokens"),
    ("-g", "--model-tag", "model_tag"),
    ("-s", "--step", "step"),
    ("-p", "--port", "port"),
    ("-d", "--dtype", "dtype"),
    ("", "--device-type", "device"),
    ("", "--host", "host"),
]
VALUES = {
    "web_temperature": ("0.5", 0.5),
    "web_top_k": ("0", 0),
    "web_max_tokens": ("64", 64),
    "replicas": ("4", 4),
    "port": ("0", 0),
    "dtype": ("bfloat16", "bfloat16"),
    "device": ("mps", "mps"),
    "host": ("127.0.0.1", "127.0.0.1"),
}
SPELLED = [(flag, name) for short, long, name in FLAGS for flag in (short, long) if flag]


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Those that were to be served."""
    found: list[Config] = []

    def run(config: Config, notes: Sequence[str]) -> int:
        assert not notes
        found.append(config)
        return 0

    monkeypatch.setattr(cli, "_run", run)
    for option in options():
        monkeypatch.delenv(option.variable, raising=False)
    return found


def given(configs: list[Config], *arguments: str) -> Config:
    ended = CliRunner().invoke(cli.app, [COMMAND, *arguments])
    assert ended.exit_code == 0, ended.output
    return configs.pop()


def test_without_flags_it_serves_as_its_script_did(configs: list[Config]) -> None:
    config = given(configs)
    assert (config.model, config.host, config.port, config.device, config.dtype) == (
        *("nanochat:", "0.0.0.0", 8000),
        *("auto", "auto"),
    )
    assert config.replicas == 1
    assert (config.web_temperature, config.web_top_k, config.web_max_tokens) == (0.8, 50, 512)
    assert (config.cors_origin, config.limits, config.web_page) == ("*", "nanochat", True)
    assert (config.max_messages, config.max_tokens_limit) == (500, 4096)


@pytest.mark.parametrize(("flag", "name"), [(flag, name) for flag, name in SPELLED if name in VALUES])
def test_a_flag_is_an_option_of_ours(configs: list[Config], flag: str, name: str) -> None:
    text, value = VALUES[name]
    assert getattr(given(configs, flag, text), name) == value


@pytest.mark.parametrize(
    "flags", [("-i", "rl", "-g", "d20", "-s", "650"), ("--source", "rl", "--model-tag", "d20", "--step", "650")]
)
def test_flags_say_which_checkpoint(configs: list[Config], flags: tuple[str, ...]) -> None:
    config = given(configs, *flags)
    assert (config.model, config.source, config.model_tag, config.step) == ("nanochat:", "rl", "d20", 650)


@pytest.mark.parametrize(("short", "long", "name"), FLAGS)
def test_every_flag_is_in_the_help(short: str, long: str, name: str) -> None:
    words = re.sub(r"\s+", " ", CliRunner().invoke(cli.app, [COMMAND, "--help"], terminal_width=200).output)
    assert f" {long} " in words.replace(",", " ")
    assert not short or f" {short}, " in words


def test_all_options_of_serve_are_there_with_their_variables_and_file(
    configs: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "h.toml").write_text('host = "127.0.0.2"\nlimits = "none"\nweb_top_k = 9')
    monkeypatch.setenv("HEADRACE_WEB_TOP_K", "8")
    config = given(configs, "--config", str(tmp_path / "h.toml"), "--max-seqs", "3", "--model", "org/name")
    assert (config.host, config.limits, config.web_top_k, config.max_seqs) == ("127.0.0.2", "none", 8, 3)
    assert (config.model, config.max_messages) == ("org/name", 10_000)


def test_a_wrong_value_fails_in_one_line_that_names_the_option() -> None:
    ended = run_to_end("-t", "3", command=COMMAND)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "headrace: --web-temperature (or HEADRACE_WEB_TEMPERATURE): expected float <= 2.0, not '3'\n"
    )
