"""docs/deploy.md and its manifests: valid YAML, whose parts fit together and whose options there are."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config import options
from gateway.metrics import Metrics

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "deploy.md").read_text()
MANIFESTS = sorted((DOCS / "kubernetes").glob("*.yaml"))
OPTIONS = {option.flag: option for option in options()}


def objects() -> list[dict[str, Any]]:
    return [each for path in MANIFESTS for each in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    found = [each for each in objects() if each["kind"] == kind]
    assert found, kind
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for deployment in of_kind("Deployment"):
        yield deployment["metadata"]["name"], deployment["spec"]["template"]
    for cluster in of_kind("RayCluster"):
        groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
        yield from ((group.get("groupName", "head"), group["template"]) for group in groups)


def serve_commands() -> list[list[str]]:
    """Their words after `headrace serve`."""
    texts = [" ".join(container.get("args", [])) for _, pod in pods() for container in pod["spec"]["containers"]]
    texts += PAGE.splitlines()
    found = (re.search(r"headrace serve([^`#]*)", text) for text in texts)
    return [shlex.split(match[1]) for match in found if match]


def test_every_object_has_what_kubernetes_asks_for() -> None:
    kinds = [each["kind"] for each in objects()]
    assert sorted(kinds) == ["Deployment", "Deployment", "HorizontalPodAutoscaler", "RayCluster", "Service"]
    for each in objects():
        assert each["apiVersion"] and each["metadata"]["name"] and each["spec"]


def test_selectors_find_their_pods_and_ports() -> None:
    deployments = of_kind("Deployment")
    for deployment in deployments:
        wanted = deployment["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    (service,) = of_kind("Service")
    ports = {port["targetPort"] for port in service["spec"]["ports"]}
    for deployment in deployments:
        template = deployment["spec"]["template"]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        assert ports <= {port["name"] for port in container["ports"]}
        assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    (scaler,) = of_kind("HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] in {each["metadata"]["name"] for each in deployments}


def test_mounted_volumes_are_there() -> None:
    for name, pod in pods():
        mounted = {m["name"] for container in pod["spec"]["containers"] for m in container.get("volumeMounts", [])}
        assert (name, mounted) == (name, {volume["name"] for volume in pod["spec"].get("volumes", [])})


@pytest.mark.parametrize("words", serve_commands(), ids=" ".join)
def test_options_are_those_of_serve(words: list[str]) -> None:
    for at, word in enumerate(words):
        if word.startswith("--"):
            option = OPTIONS[word]
            if option.kind == "integer":
                int(words[at + 1])
            assert not option.choices or words[at + 1] in option.choices


def test_gateways_drain_within_the_time_that_they_are_given() -> None:
    for deployment in of_kind("Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        (command,) = spec["containers"][0]["args"]
        drain = re.search(r"--drain-timeout (\d+)", command)
        assert drain and spec["terminationGracePeriodSeconds"] > int(drain[1])


def test_gateways_know_the_cluster_and_each_other() -> None:
    (cluster,) = of_kind("RayCluster")
    commands = {each["metadata"]["name"]: serve for each, serve in zip(of_kind("Deployment"), _args(), strict=True)}
    for command in commands.values():
        assert f"--address={cluster['metadata']['name']}-head-svc:6379" in command
    assert "--ray-name headrace" in commands["headrace-first"]
    assert "--attach headrace" in commands["headrace-attached"]


def _args() -> list[str]:
    return [each["spec"]["template"]["spec"]["containers"][0]["args"][0] for each in of_kind("Deployment")]


def test_series_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"headrace_\w+", PAGE))
    assert named and named <= {family.name for family in Metrics().collect()}
