"""Options: one table, three sources, one line for each mistake."""

from pathlib import Path

import pytest

from gateway.config import Config, ConfigError, format_size, load_config, options, parse_size
from gateway.config_page import PAGE, render

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "headrace.toml"


def test_defaults_stand_without_any_source() -> None:
    assert load_config({}) == Config()


def test_flags_win_over_the_file_and_the_file_over_defaults(file: Path) -> None:
    file.write_text("port = 9000\nmax_seqs = 3\nprefix_caching = false\n")
    config = load_config({"port": "9001"}, file)
    assert (config.port, config.max_seqs, config.prefix_caching) == (9001, 3, False)
    assert config.host == Config().host


def test_text_becomes_the_type_of_its_option() -> None:
    config = load_config({"max_wait": "1.5", "threads": "2", "prefix_caching": False, "kv_cache_memory": "2GiB"})
    assert (config.max_wait, config.threads, config.prefix_caching) == (1.5, 2, False)
    assert config.kv_cache_memory == 2 << 30


def test_sizes_in_the_file_may_be_text_or_numbers(file: Path) -> None:
    file.write_text('kv_cache_memory = "512MiB"\nmax_body = 1000\n')
    config = load_config({}, file)
    assert (config.kv_cache_memory, config.max_body) == (512 << 20, 1000)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("port", "http", "--port (or HEADRACE_PORT): expected int, not 'http'"),
        ("port", "70000", "--port (or HEADRACE_PORT): expected int <= 65535, not '70000'"),
        ("block_size", "0", "--block-size (or HEADRACE_BLOCK_SIZE): expected int >= 1, not '0'"),
        ("max_wait", "nan", "--max-wait (or HEADRACE_MAX_WAIT): expected float >= 0.0, not 'nan'"),
        ("log_level", "loud", "--log-level (or HEADRACE_LOG_LEVEL): expected one of debug, error, info, warning"),
        ("max_body", "2 cups", "--max-body (or HEADRACE_MAX_BODY): expected a size such as 2GiB"),
    ],
)
def test_a_wrong_value_is_named_with_its_flag_and_variable(name: str, value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        load_config({name: value})
    assert str(wrong.value).startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("max_seq = 3", "unknown key 'max_seq' in {file}; did you mean 'max_seqs'?"),
        ("max-seqs = 3", "unknown key 'max-seqs' in {file}; did you mean 'max_seqs'?"),
        ("[http]\nport = 1", "unknown key 'http' in {file}"),
        ('port = "9000"', "port in {file}: expected int, not '9000'"),
        ('max_body = "x"', "max_body in {file}: expected a size"),
        ("port", "--config: {file} is not TOML: "),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as wrong:
        load_config({"port": "9001"}, file)
    assert str(wrong.value).startswith(problem.format(file=file))


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=f"--config: cannot read {file}: No such file"):
        load_config({}, file)


def test_a_preset_of_limits_gives_way_to_what_is_given(file: Path) -> None:
    file.write_text('limits = "nanochat"\nmax_top_k = 0\n')
    config = load_config({"max_messages": "20"}, file)
    assert (config.max_messages, config.max_message_chars, config.max_total_chars) == (20, 8000, 32_000)
    assert (config.max_temperature, config.max_top_k, config.max_tokens_limit) == (2.0, 0, 4096)


def test_a_key_is_not_shown_even_where_it_is_wrong(file: Path) -> None:
    file.write_text("api_key = 123456\n")
    with pytest.raises(ConfigError) as wrong:
        load_config({}, file)
    assert str(wrong.value) == f"api_key in {file}: expected str"


def test_an_empty_key_is_not_the_same_as_none() -> None:
    with pytest.raises(ConfigError, match=r"--api-key \(or HEADRACE_API_KEY\): expected str of length >= 1"):
        load_config({"api_key": ""})


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("0", 0), ("1000", 1000), ("512MiB", 512 << 20), ("2 GiB", 2 << 30), ("1.5g", 3 << 29), ("3MB", 3_000_000)],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1 << 20, "1 MiB"), (1023 << 20, "1023 MiB"), (3 << 29, "1.5 GiB")],
)
def test_shown_sizes(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text


def test_every_option_is_described() -> None:
    assert [option.name for option in options() if not option.description.endswith(".")] == []


def test_the_page_of_options_is_current() -> None:
    assert (DOCS / "config.md").read_text() == render(), f"run: {PAGE}"
