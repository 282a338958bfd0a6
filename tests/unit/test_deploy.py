# SPDX-License-Identifier: Apache-2.0
"""The files in ``deploy``: they can be read, and ask for metrics and labels that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

from carrot_twisted.service.families import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = json.loads((TOP / "deploy/grafana/carrot-twisted.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((TOP / "deploy/prometheus/alerts.yml").read_text())
#: What Prometheus itself adds.
ADDED = {"job", "instance"}
#: Of prometheus-client, about the process, and of Prometheus, about what it asks.
FOREIGN = {"process_resident_memory_bytes", "process_cpu_seconds_total", "up"}


def exposed() -> dict[str, set[str]]:
    """Names of the samples, with their labels."""
    found: dict[str, set[str]] = {name: set() for name in FOREIGN}
    for name, (kind, labels, _) in CATALOGUE.items():
        if kind is CounterMetricFamily:
            found[f"{name}_total"] = set(labels)
        elif kind is HistogramMetricFamily:
            found[f"{name}_bucket"] = {*labels, "le"}
            found[f"{name}_sum"] = found[f"{name}_count"] = set(labels)
        else:
            found[name] = set(labels)
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def questions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.findall(r"label_values\((.*), (\w+)\)", variable["query"]["query"])[
                0
            ]
            yield f"count by ({label}) ({metric})"
    yield from (rule["expr"] for rule in alerts())


ALL = sorted(set(questions()))


@pytest.mark.parametrize("question", ALL)
def test_it_asks_for_metrics_and_labels_that_there_are(question: str) -> None:
    known = exposed()
    names = set(re.findall(r"\b(?:carrot_\w+|process_\w+|up\b)", question))
    names -= {name for name in names if f'"{name}' in question}
    assert names
    assert names <= set(known)
    labels = set().union(*(known[name] for name in names)) | ADDED
    asked = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!=|!~|=)", question))
    for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", question):
        asked |= set(re.split(r",\s*", group))
    assert asked <= labels


@pytest.mark.parametrize("question", ALL)
def test_its_brackets_are_closed(question: str) -> None:
    for opened, closed in ("()", "{}", "[]"):
        assert question.count(opened) == question.count(closed)


#: Prometheus' own checker. Who has no Prometheus here has the tests above.
PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, of Prometheus")
def test_prometheus_can_read_every_rule_and_every_question(tmp_path: Path) -> None:
    panels = [
        {"record": f"panel:{n}", "expr": re.sub(r"\$__rate_interval", "5m", question)}
        for n, question in enumerate(ALL)
    ]
    rules = {"groups": [*RULES["groups"], {"name": "panels", "rules": panels}]}
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(rules))
    checked = subprocess.run(
        [str(PROMTOOL), "check", "rules", file], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_every_metric_of_ours_is_seen_on_the_dashboard() -> None:
    text = " ".join(t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"])
    unseen = {name for name in CATALOGUE if name not in text}
    assert unseen == {
        "carrot_service",
        "carrot_problems",
        "carrot_queue_consumed",
        "carrot_queue_running",
        "carrot_sample_age_seconds",
    }


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        places = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & taken
        assert at["x"] + at["w"] <= 24
        taken |= places
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0m"))
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    grouped = re.findall(r"\bby\s*\(([^)]*)\)", rule["expr"])
    kept = set(re.split(r",\s*", grouped[0])) if grouped else ADDED
    assert used <= kept


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) > 10


def test_the_documentation_tells_of_each_metric_and_each_alert() -> None:
    text = (TOP / "docs" / "health.md").read_text()
    told = set(re.findall(r"^\| `(carrot_\w+)`", text, re.MULTILINE))
    assert told == {
        f"{name}_total" if kind is CounterMetricFamily else name
        for name, (kind, _, _) in CATALOGUE.items()
    }
    assert [rule["alert"] for rule in alerts() if rule["alert"] not in text] == []
