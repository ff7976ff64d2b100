"""From flags to what is asked of whom."""

import io
from typing import Any

import pytest

from chat.flags import Flags
from chat.run import Plan, UsageError, checked_plan
from chat.server import server_options


class Pipe(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))


class Terminal(Pipe):
    def isatty(self) -> bool:
        return True


def plan(data: bytes = b"hi", **flags: Any) -> Plan:
    return checked_plan(Flags(**flags), Pipe(data))


def test_flags_of_nanochat_are_options_of_the_server() -> None:
    assert server_options(Flags()) == []
    assert server_options(Flags(source="mid", model_tag="d20", step=650, device_type="cpu", dtype="float32")) == [
        "--model=nanochat:",
        "--source=mid",
        "--model-tag=d20",
        "--step=650",
        "--device=cpu",
        "--dtype=float32",
    ]
    assert server_options(Flags(model="a.gguf", dtype="bfloat16")) == ["--model=a.gguf", "--dtype=bfloat16"]
    assert server_options(Flags(step=0)) == ["--model=nanochat:", "--step=0"]


def test_what_is_sampled_as_nobody_said() -> None:
    assert plan().settings == {"temperature": 0.6, "top_k": 50}
    assert plan(url="http://h").settings == {}  # of another server, which may not know top_k
    assert plan(url="http://h", temperature=0.0, top_k=0, max_tokens=9).settings == {
        "temperature": 0.0,
        "top_k": 0,
        "max_tokens": 9,
    }


def test_where_the_prompt_comes_from() -> None:
    assert plan(" é\nfoo\n".encode()).prompt == "é\nfoo"
    assert plan(b"not read", prompt="this").prompt == "this"
    assert checked_plan(Flags(), Terminal(b"")).prompt is None


@pytest.mark.parametrize(
    ("flags", "data", "problem"),
    [
        ({"url": "h:1"}, b"x", "--url: expected http://host:port or https://host, not 'h:1'"),
        ({"url": "http://h", "source": "sft"}, b"x", "--source is of a server that is started here"),
        ({"url": "http://h", "device_type": "cpu"}, b"x", "--device-type is of a server that is started here"),
        ({"temperature": 3.0}, b"x", "--temperature: from 0 to 2, not 3.0"),
        ({"top_k": -1}, b"x", "--top-k: from 0 to"),
        ({"max_tokens": 0}, b"x", "--max-tokens: from 1 to"),
        ({"prompt": " "}, b"x", "--prompt: it is empty"),
        ({"api_key": "ä"}, b"x", "--api-key: a key is visible ASCII characters"),
        ({}, b" \n", "standard input, which is no terminal, has no prompt"),
        ({}, b"\xff\xfe", "standard input is not UTF-8"),
        ({}, b"x" * ((16 << 20) + 1), "standard input: more than 16 MiB"),
    ],
)
def test_wrong_usage_is_told_before_anything_starts(flags: dict[str, Any], data: bytes, problem: str) -> None:
    with pytest.raises(UsageError) as raised:
        plan(data, **flags)
    assert str(raised.value).startswith(problem)
