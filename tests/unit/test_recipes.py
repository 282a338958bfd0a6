# SPDX-License-Identifier: Apache-2.0
"""The recipes in ``deploy``: what they say fits the service that they run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from carrot_twisted import conf, tap
from tests.pages import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PAGE = DEPLOY.parent / "docs" / "deployment.md"
CONTAINERFILE = (DEPLOY / "container/Containerfile").read_text().replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
OBJECTS: dict[tuple[str, str], dict[str, Any]] = {
    (one["kind"], one["metadata"]["name"]): one
    for file in (DEPLOY / "kubernetes").iterdir()
    for one in yaml.safe_load_all(file.read_text())
}
PROCFILE: dict[str, str] = dict(
    line.split(": ", 1) for line in (DEPLOY / "heroku/Procfile").read_text().splitlines()
)
SERVICE = OBJECTS["Deployment", "shop-carrot"]
MIGRATE = ["python", "manage.py", "migrate", "--noinput"]
#: Seconds more than ``shutdown_timeout`` that a stop may take, as docs/commands.md says.
MORE = 15
#: Seconds that Heroku leaves a process between SIGTERM and SIGKILL.
HEROKU = 30


def instruction(name: str) -> list[str]:
    """Of the Containerfile's instructions of this name the last one, a list in JSON."""
    words: list[str] = json.loads(
        re.findall(rf"^{name}\b[^\[\n]*(\[.*\])$", CONTAINERFILE, re.M)[-1]
    )
    return words


def options(words: list[str]) -> tap.Options:
    """Of ``twistd … carrot …``, as the service itself reads them."""
    assert words[:4] == ["twistd", "--nodaemon", "--pidfile=", "carrot"]
    read = tap.Options()
    read.parseOptions(words[4:])
    return read


def container_of(kind: str, name: str) -> dict[str, Any]:
    """The only container of a pod."""
    (found,) = OBJECTS[kind, name]["spec"]["template"]["spec"]["containers"]
    container: dict[str, Any] = found
    return container


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What makes pods, and the template."""
    for one in OBJECTS.values():
        if "template" in one["spec"]:
            yield one, one["spec"]["template"]


def seconds(text: str) -> int:
    """Of a time in a compose file, "60s"."""
    assert text.endswith("s")
    return int(text[:-1])


def test_the_image_runs_the_service_which_hears_signals_as_no_root() -> None:
    read = options(instruction("CMD"))
    assert read["http"] == "tcp:9090"
    user = re.findall(r"^USER (\d+):\d+$", CONTAINERFILE, re.M)
    assert user
    assert "0" not in user
    health = " ".join(instruction("HEALTHCHECK"))
    assert "http://127.0.0.1:9090/live" in health


def test_all_services_are_run_alike() -> None:
    assert container_of("Deployment", "shop-carrot")["args"] == instruction("CMD")
    assert "command" not in COMPOSE["services"]["service"]
    assert options(PROCFILE["worker"].split())["shutdown-timeout"]


def test_a_stop_gets_its_time_everywhere() -> None:
    needed = conf.DEFAULTS["shutdown_timeout"] + MORE
    assert SERVICE["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > needed
    assert seconds(COMPOSE["services"]["service"]["stop_grace_period"]) > needed
    patience = options(PROCFILE["worker"].split())["shutdown-timeout"] + MORE
    assert HEROKU - 2 <= patience < HEROKU
    # Signals go to every process there: workers would take that of their monitor for a second one.
    assert options(PROCFILE["worker"].split())["workers"] == 1


def test_kubernetes_asks_the_right_questions() -> None:
    container = container_of("Deployment", "shop-carrot")
    (port,) = container["ports"]
    assert options(container["args"])["http"] == f"tcp:{port['containerPort']}"
    live, ready = container["livenessProbe"], container["readinessProbe"]
    assert live["httpGet"] == {"path": "/live", "port": port["name"]}
    assert ready["httpGet"] == {"path": "/ready", "port": port["name"]}
    assert live["timeoutSeconds"] < live["periodSeconds"]
    # Not sooner than a lease and a task that holds Python for some seconds.
    assert live["periodSeconds"] * live["failureThreshold"] >= 60
    asked = SERVICE["spec"]["template"]["metadata"]["annotations"]
    assert asked["prometheus.io/port"] == str(port["containerPort"])
    assert asked["prometheus.io/path"] == "/metrics"


def test_the_probes_that_the_documentation_shows_are_these() -> None:
    (shown,) = (text for text in blocks(PAGE.with_name("health.md"), "yaml") if "Probe" in text)
    container = container_of("Deployment", "shop-carrot")
    probes = yaml.safe_load(shown)
    assert probes == {name: container[name] for name in probes}


def test_the_first_pod_of_a_broken_version_ends_the_roll_out() -> None:
    assert SERVICE["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "lifecycle" not in container_of("Deployment", "shop-carrot")


def test_objects_find_each_other() -> None:
    for one, template in pods():
        labels = template["metadata"]["labels"]
        assert one["metadata"]["labels"] == labels
        if one["kind"] == "Deployment":
            assert one["spec"]["selector"]["matchLabels"] == labels
    budget = OBJECTS["PodDisruptionBudget", "shop-carrot"]["spec"]["selector"]["matchLabels"]
    assert budget == SERVICE["spec"]["template"]["metadata"]["labels"]
    target = OBJECTS["HorizontalPodAutoscaler", "shop-carrot"]["spec"]["scaleTargetRef"]
    assert ("Deployment", target["name"]) in OBJECTS
    web = OBJECTS["Deployment", "shop-web"]["spec"]["template"]["metadata"]["labels"]
    assert OBJECTS["Service", "shop-web"]["spec"]["selector"] == web


def test_pods_need_no_rights() -> None:
    for _, template in pods():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["image"] == "registry.example.org/shop:1"


def test_tables_come_before_services() -> None:
    assert container_of("Job", "shop-migrate")["args"] == MIGRATE
    assert COMPOSE["services"]["migrate"]["command"] == MIGRATE
    for name in ("service", "web"):
        waits = COMPOSE["services"][name]["depends_on"]["migrate"]
        assert waits == {"condition": "service_completed_successfully"}
    assert PROCFILE["release"].split() == MIGRATE


def test_compose_gives_the_settings_their_variables_and_names_those_of_its_file() -> None:
    settings = "".join(blocks(PAGE, "python"))
    read = set(re.findall(r'os\.environ\["(\w+)"\]', settings))
    for name in ("service", "web", "migrate"):
        assert COMPOSE["services"][name]["environment"].keys() == read
    text = (DEPLOY / "compose/compose.yaml").read_text()
    named = re.findall(r"^# .*\.env with (.*)\.$", text, re.MULTILINE)[0]
    assert set(re.findall(r"[A-Z_]+", named)) == set(re.findall(r"\$\{(\w+):\?\}", text))


def test_compose_waits_for_servers_that_tell_their_health() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for name, waits in service.get("depends_on", {}).items():
            if waits["condition"] == "service_healthy":
                assert services[name]["healthcheck"]["test"][0] == "CMD"
    # No password stands in the file.
    assert set(re.findall(r"PASS\w*: (.*)", (DEPLOY / "compose/compose.yaml").read_text())) == {
        "${BROKER_PASSWORD:?}",
        "${DATABASE_PASSWORD:?}",
    }


@pytest.mark.parametrize("file", [p for p in DEPLOY.rglob("*") if p.is_file()], ids=str)
def test_the_documentation_names_each_file(file: Path) -> None:
    page = PAGE if file.suffix not in {".json", ".yml"} else PAGE.with_name("health.md")
    assert f"deploy/{file.relative_to(DEPLOY)}" in page.read_text()
