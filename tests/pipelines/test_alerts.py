"""Alerts fire when they should and keep quiet when they should: Prometheus' own program plays the rules (promtool)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

BASE = Path(__file__).resolve().parents[2] / "infra" / "k8s" / "base"
POD = 'namespace="kiwi", pod="p-1"'

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Prometheus) is not installed")


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    documents = yaml.safe_load_all((BASE / "monitoring.yaml").read_text())
    (spec,) = [document["spec"] for document in documents if document["kind"] == "PrometheusRule"]
    file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def fires(rules, tmp_path, alert, at, series, labels):
    """Plays series (name → values in promtool's notation, one a minute); `labels` of the one alert, or None."""
    expected = [] if labels is None else [{"exp_labels": labels}]
    (group,) = yaml.safe_load(rules.read_text())["groups"]
    rule = next(it for it in group["rules"] if it.get("alert") == alert)
    for one in expected:
        one["exp_labels"] = {"severity": rule["labels"]["severity"], **one["exp_labels"]}
        one["exp_annotations"] = {
            key: _filled(text, one["exp_labels"]) for key, text in rule["annotations"].items()
        }  # fmt: skip
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": inputs,
            "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}]}  # fmt: skip
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", file)


def _filled(text, labels):
    for name, value in labels.items():
        text = text.replace(f"{{{{ $labels.{name} }}}}", value)
    return text


def test_the_rules_and_every_expression_of_the_dashboard_are_promql(rules, tmp_path):
    promtool("check", "rules", rules)
    board = json.loads((BASE / "dashboard.json").read_text())
    written = {"$namespace": "kiwi", "$gpu_hour": "3", "$__range": "24h"}
    found = []
    for panel in board["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in written.items():
                text = text.replace(name, value)
            assert "$" not in text
            found.append({"record": f"panel:{panel['id']}:{len(found)}", "expr": text})
    file = tmp_path / "board.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": found}]}))
    promtool("check", "rules", file)


@pytest.mark.parametrize(
    ("alert", "at", "series", "labels"),
    [
        ("KiwiRunFailed", "5m", {'kiwi_run_success{workspace="/work/a"}': "0x10"}, {"workspace": "/work/a"}),
        ("KiwiRunFailed", "5m", {'kiwi_run_success{workspace="/work/a"}': "1x10"}, None),
        ("KiwiNoRunSucceeds", "10d", {'kiwi_run_last_success_timestamp_seconds{workspace="w"}': "0x15000"},
         {"workspace": "w"}),
        ("KiwiNoRunSucceeds", "8d", {'kiwi_run_last_success_timestamp_seconds{workspace="w"}': "0x15000"}, None),
        ("KiwiTaskFailed", "22m", {f'kube_pod_status_phase{{{POD}, phase="Failed"}}': "0x18 1x40"},
         {"namespace": "kiwi", "pod": "p-1", "phase": "Failed"}),
        # failed before anybody looked: its first sample says so
        ("KiwiTaskFailed", "22m", {f'kube_pod_status_phase{{{POD}, phase="Failed"}}': "_x18 1x40"},
         {"namespace": "kiwi", "pod": "p-1", "phase": "Failed"}),
        # a failed pod that stays for people to look at
        ("KiwiTaskFailed", "55m", {f'kube_pod_status_phase{{{POD}, phase="Failed"}}': "0x18 1x60"}, None),
        ("KiwiMlflowIsAway", "6m", {'kube_deployment_status_replicas_available{namespace="kiwi", deployment="mlflow"}':
                                    "0x10"}, {"namespace": "kiwi", "deployment": "mlflow"}),
        ("KiwiMlflowFails", "30m", {'mlflow_http_request_total{namespace="kiwi", status="500"}': "0+6x40",
                                    'mlflow_http_request_total{namespace="kiwi", status="200"}': "0+60x40"},
         {"namespace": "kiwi"}),
        ("KiwiMlflowFails", "30m", {'mlflow_http_request_total{namespace="kiwi", status="404"}': "0+60x40",
                                    'mlflow_http_request_total{namespace="kiwi", status="200"}': "0+60x40"}, None),
        # whichever way Prometheus labels the exporter's figures
        ("KiwiGpusIdle", "4h", {f"DCGM_FI_DEV_GPU_UTIL{{{POD}, gpu=\"0\"}}": "3x300"},
         {"namespace": "kiwi", "pod": "p-1"}),
        ("KiwiGpusIdle", "4h", {'DCGM_FI_DEV_GPU_UTIL{namespace="gpu-operator", pod="dcgm-7", '
                                'exported_namespace="kiwi", exported_pod="p-1"}': "3x300"},
         {"namespace": "kiwi", "pod": "p-1"}),
        ("KiwiGpusIdle", "4h", {f"DCGM_FI_DEV_GPU_UTIL{{{POD}, gpu=\"0\"}}": "93x300"}, None),
        ("KiwiGpusIdle", "4h", {'DCGM_FI_DEV_GPU_UTIL{namespace="gpu-operator", pod="dcgm-7", '
                                'exported_namespace="others", exported_pod="p-1"}': "3x300"}, None),
        ("KiwiQueueIsStuck", "3h", {'kueue_pending_workloads{cluster_queue="kiwi", status="inadmissible"}': "1x200"},
         {"cluster_queue": "kiwi", "status": "inadmissible"}),
    ],
)  # fmt: skip
def test_an_alert_fires_when_it_should_and_only_then(rules, tmp_path, alert, at, series, labels):
    fires(rules, tmp_path, alert, at, series, labels)


def test_gpus_are_counted_only_for_pods_that_run(rules, tmp_path):
    """What the dashboard's spend is made of."""
    held = {
        "kube_pod_container_resource_requests": [("a", 8), ("b", 2)],
        "kube_pod_status_phase": [("a", 1), ("b", 0)],
    }
    series = [
        {"series": f'{name}{{namespace="kiwi", pod="{pod}", {more}}}', "values": f"{value}x10"}
        for (name, pairs), more in zip(
            held.items(), ('resource="nvidia_com_gpu", container="main"', 'phase="Running"'), strict=True
        )
        for pod, value in pairs
    ]
    expected = [{"labels": 'kiwi:gpus_requested:sum{namespace="kiwi"}', "value": 8}]
    asked = [{"expr": "kiwi:gpus_requested:sum", "eval_time": "5m", "exp_samples": expected}]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", file)
