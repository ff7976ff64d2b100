"""Flags, right and wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.arrivals import Closed, Open
from bench.flags import Flags
from bench.measure import SLO
from bench.options import OptionError, command_line, parse
from bench.workload import Span


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("https://example.org/openai/v1", "https://example.org/openai/v1"),
    ],
)
def test_a_url_with_or_without_its_path(url: str, api: str) -> None:
    assert parse(Flags(url)).targets[0].url == api


def test_levels_spans_and_bounds() -> None:
    assert parse(Flags()).loads == (Closed(1), Closed(8), Closed(32))
    got = parse(Flags(rate="0.5,2", burstiness=0, bursts=4, input_len="1:9", slo="ttft=500,e2e=1e4"))
    assert got.loads == (Open(0.5, 0, 4), Open(2, 0, 4))
    assert (got.work.input_len, got.slo, got.rounds) == (Span(1, 9), SLO(ttft=500, e2e=10_000), 1)


def test_each_server_has_its_own_key_and_model() -> None:
    got = parse(Flags("http://a", model="m", api_key="one", compare="http://b"))
    assert [(target.model, target.api_key) for target in got.targets] == [("m", "one"), ("", "")]
    assert got.rounds == 3


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"url": "localhost:8000"}, "URL: http"),
        ({"url": "http://h:99999"}, "URL: Port out of range"),
        ({"url": "http://me:secret@h"}, "URL: a URL without user"),
        ({"api_key": "a\r\nb: c"}, "visible ASCII"),
        ({"compare": "ftp://h"}, "--compare: http"),
        ({"endpoint": "embeddings"}, "--endpoint"),
        ({"concurrency": "1,x"}, "--concurrency: a number"),
        ({"concurrency": "0"}, "--concurrency: a number above 0"),
        ({"concurrency": "1.5"}, "--concurrency: whole numbers"),
        ({"concurrency": "2,2"}, "--concurrency: each level once"),
        ({"concurrency": "20000"}, "--concurrency: whole numbers up to 10,000"),
        ({"rate": "inf"}, "--rate: a number above 0"),
        ({"rate": "1", "concurrency": "1"}, "two kinds of load"),
        ({"rate": "1", "burstiness": -1.0}, "--burstiness"),
        ({"bursts": 4}, "that --rate asks for"),
        ({"speed": "2"}, "that of a --trace"),
        ({"trace": "/not/there"}, "--trace: /not/there"),
        ({"input_len": "9:1"}, "--input-len"),
        ({"output_len": "0"}, "--output-len"),
        ({"shared_prefix": -1}, "--shared-prefix: from 0"),
        ({"requests": -1}, "--requests"),
        ({"rounds": 1001}, "--rounds"),
        ({"seed": "x"}, "--seed"),
        ({"timeout": 0.0}, "--timeout"),
        ({"slo": "ttft"}, "--slo: a number"),
        ({"slo": "itl=5"}, "--slo: ttft=MS"),
        ({"slo": "ttft=1,ttft=2"}, "--slo: ttft=MS"),
        ({"extra_body": "[]"}, "--extra-body: not a JSON object"),
        ({"extra_body": "{"}, "--extra-body: not JSON"),
        ({"output": "/not/there/x.json"}, "--output"),
        ({"plot": "x.pdf"}, "--plot: a file that ends in .html, .svg, .png"),
    ],
)
def test_a_mistake_is_told_with_its_flag(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        parse(replace(Flags(), **wrong))  # type: ignore[arg-type]


def test_png_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.png.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install 'headrace\[plot\]'"):
        parse(Flags(plot=str(tmp_path / "x.png")))


def test_keys_are_not_told() -> None:
    typed = ["/bin/headrace", "bench", "--api-key", "sk-1", "--compare-api-key=sk-2", "--seed", "1"]
    assert command_line(typed) == ["headrace", "bench", "--api-key", "...", "--compare-api-key=...", "--seed", "1"]
