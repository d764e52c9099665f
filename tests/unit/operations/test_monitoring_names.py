"""Rules, dashboard and docs speak of figures that runs really export, by names and labels that they really have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kiwi.operations import figures
from kiwi.operations.outcome import Outcome
from kiwi.tracking import TaskRecord

ROOT = Path(__file__).resolve().parents[3]
SCRAPED = {"namespace", "pod", "job", "instance", "service"}
NAME = re.compile(r"\bkiwi_[a-z_]+\b")


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Every figure of a run that did everything, with its labels."""
    from prometheus_client import generate_latest

    outcome = Outcome(
        "r", "/work/x", "tiny", "m", "finished", 1.0, 2.0, "sqlite:///x", last_success=2.0,
        tasks=tuple(TaskRecord(name, None, "finished", 1.0, 2.0, 1) for name in ("decide", "hold")),
        dataset={"quadruplets": 1, "rejected": {"x": 1}}, stages={"s": {"loss_last": 1.0, "samples_per_second": 1.0}},
        scores={"overall": 1.0}, decision={"decision": "hold"},
    )  # fmt: skip
    families = text_string_to_metric_families(generate_latest(figures.registry(outcome)).decode())
    return {family.name: set(family.samples[0].labels) for family in families}


def expressions() -> list[str]:
    found = []
    for document in yaml.safe_load_all((ROOT / "infra/k8s/base/monitoring.yaml").read_text()):
        if document["kind"] == "PrometheusRule":
            found += [rule["expr"] for group in document["spec"]["groups"] for rule in group["rules"]]
    board = json.loads((ROOT / "infra/k8s/base/dashboard.json").read_text())
    return found + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_rules_and_dashboard_use_figures_that_there_are(exported: dict[str, set[str]]) -> None:
    used = {name for text in expressions() for name in NAME.findall(text)}
    assert {"kiwi_run_success", "kiwi_run_last_success_timestamp_seconds", "kiwi_benchmark_score"} <= used
    assert used - set(exported) == set()


def test_rules_and_dashboard_ask_for_labels_that_there_are(exported: dict[str, set[str]]) -> None:
    for text in expressions():
        for name, matchers in re.findall(r"\b(kiwi_[a-z_]+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)\s*=~?", matchers)) <= exported[name] | SCRAPED, text
        names = NAME.findall(text)
        for group in re.findall(r"by \(([^)]*)\)", text) if names else []:
            assert {label.strip() for label in group.split(",")} <= exported[names[0]] | SCRAPED, text


def test_the_docs_list_every_figure_and_no_other(exported: dict[str, set[str]]) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    table = re.findall(r"^\| `(kiwi_[a-z_]+)` \|([^|]*)\|", text, re.MULTILINE)
    assert {name for name, _ in table} == set(exported)
    common = {"workspace", "model", "preset"}
    for name, labels in table:
        assert set(re.findall(r"`(\w+)`", labels)) == exported[name] - common, name


def test_every_alert_of_the_rules_is_in_the_docs() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    alerts = re.findall(r"alert: (\w+)", (ROOT / "infra/k8s/base/monitoring.yaml").read_text())
    assert alerts
    assert [name for name in alerts if f"`{name}`" not in text] == []
