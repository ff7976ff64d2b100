from __future__ import annotations

from collections import Counter

from benchmarks.scrape import KINDS, request, series

PAGE = b"""# HELP headrace_a Some text with {braces}.
# TYPE headrace_a counter
headrace_a_total{model="m",reason="a b"} 1.0 # {request_id="req-1"} 1.0 1764000000.0
headrace_a_total{model="m",reason="c"} 2.0
headrace_up 1.0
# EOF
"""


def test_series_are_names_with_labels_and_neither_values_nor_exemplars() -> None:
    told = {b'headrace_a_total{model="m",reason="a b"}', b'headrace_a_total{model="m",reason="c"}', b"headrace_up"}
    assert series(PAGE) == told
    assert series(PAGE.replace(b"2.0", b"3.0").replace(b"req-1", b"req-2")) == told


def test_all_kinds_come_equally_often_and_no_prompt_twice() -> None:
    asked = [request(number) for number in range(len(KINDS) * 30)]
    assert set(Counter(path + str(body.keys()) + str(status) for path, body, status in asked).values()) == {30}
    assert len({str(body.get("prompt") or body["messages"]) for _, body, _ in asked}) == len(asked)
