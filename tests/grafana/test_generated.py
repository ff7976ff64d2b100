"""The dashboard and the rules: as generated, and only of series that there are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.gpus import SERIES
from gateway.metrics import Metrics
from grafana import generate
from grafana.panels import ROWS
from grafana.rules import ALERTS, recordings, rules_text

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "grafana"
NAME = re.compile(r"\b(?:headrace|process)_[a-z0-9_]+")
OF_GPUS = {f"headrace_gpu_{name}" for name, _, _ in SERIES}
PARTS = ("_total", "_bucket", "_sum", "_count", "")


def known_names() -> set[str]:
    families = Metrics().collect()
    return {family.name + part for family in families for part in PARTS} | OF_GPUS


def expressions() -> list[str]:
    panels = [query.expr for row in ROWS for panel in row.panels for query in panel.queries]
    return [*panels, *(each.expr for each in recordings()), *(alert.expr for alert in ALERTS)]


@pytest.mark.parametrize(("file", "text"), [("headrace.json", generate.dashboard_text), ("rules.yml", rules_text)])
def test_files_are_as_generated(file: str, text: Any) -> None:
    """Or else: python -m grafana.generate"""
    assert (FOLDER / file).read_text() == text()


def test_only_series_that_there_are_are_asked_for() -> None:
    asked = {name for expr in expressions() for name in NAME.findall(expr)}
    assert asked - known_names() == set()


def test_every_series_of_ours_is_shown_somewhere() -> None:
    asked = {
        name for row in ROWS for panel in row.panels for query in panel.queries for name in NAME.findall(query.expr)
    }
    shown = {name.removesuffix(part) for name in asked for part in PARTS if name.endswith(part)}
    ours = {family.name for family in Metrics().collect() if family.name.startswith("headrace_")}
    assert ours - shown == set()


def test_every_recorded_series_is_used() -> None:
    used = " ".join(alert.expr for alert in ALERTS)
    assert [each.name for each in recordings() if each.name not in used] == []


def test_every_alert_has_a_chapter_and_is_tested_both_ways() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert {alert.chapter for alert in ALERTS} == {heading.lower() for heading in headings}
    tests = yaml.safe_load((ROOT / "tests/grafana/rules_test.yml").read_text())["tests"]
    told = [(case["alertname"], bool(case.get("exp_alerts"))) for test in tests for case in test["alert_rule_test"]]
    fires = {name for name, fires in told if fires}
    assert fires == {alert.name for alert in ALERTS}
    # That an alert which is not expected does not fire is checked in each case, for those on other series.
    silent = {name for name, fires in told if not fires}
    assert silent >= {alert.name for alert in ALERTS} - {"HeadraceTtftBudgetBurns"}


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = generate.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= generate.COLUMNS
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own


def test_what_is_provisioned_fits_together() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yml").read_text())
    mounted = [volume for service in compose["services"].values() for volume in service["volumes"]]
    for volume in mounted:
        if volume.startswith("./"):
            assert (FOLDER / volume.split(":")[0]).exists(), volume
    provider = yaml.safe_load((FOLDER / "provisioning/dashboards/headrace.yml").read_text())["providers"][0]
    folder = provider["options"]["path"]
    assert any(volume.split(":")[1] == f"{folder}/headrace.json" for volume in mounted if "headrace.json" in volume)
    source = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert json.loads((FOLDER / "headrace.json").read_text())["templating"]["list"][0]["type"] == "datasource"
