"""Who may talk to whom in the namespace: every arrow that a run needs is let through, and no other.

The rules are read here as Kubernetes reads them: a pod that no policy of a direction selects is free, else it may do
what one of them lists; both ends have to agree. What a network plugin makes of them, this cannot show.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("manifests", Path(__file__).with_name("manifests.py"))
manifests = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(manifests)

NAME, COMPONENT, SPACE = "app.kubernetes.io/name", "app.kubernetes.io/component", "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class End:
    """A pod by its labels, in another namespace where one is named; or the world by an address."""

    labels: tuple = ()
    space: str | None = None
    address: str | None = None


# As kubeflow/pipelines' compiler labels what it starts, and as infra/k8s labels the rest.
TASK = End((("pipelines.kubeflow.org/v2_component", "true"), ("workflows.argoproj.io/workflow", "w")))
DRIVER = End((("workflows.argoproj.io/workflow", "w"),))
NODE = End(((COMPONENT, "training"),))
MLFLOW, PUSHGATEWAY, POSTGRES = (End(((NAME, name),)) for name in ("mlflow", "pushgateway", "postgres"))
SERVICE = End(((COMPONENT, "model-service"), (NAME, "judging")))
PAGES = End((("app", "ml-pipeline-ui-artifact"),))
NAMES = End((("k8s-app", "kube-dns"),), "kube-system")
NAMES_ON_THE_NODE = End(address="169.254.20.10")
KUBEFLOW, PROMETHEUS, STRANGER = End((), "kubeflow"), End((), "monitoring"), End((("app", "x"),), "default")
WORLD, CLOUD_METADATA = End(address="52.1.2.3"), End(address="169.254.169.254")

NEEDED = [
    *((source, names, 53) for source in (TASK, DRIVER, NODE, MLFLOW, SERVICE) for names in (NAMES, NAMES_ON_THE_NODE)),
    (TASK, MLFLOW, 5000), (NODE, MLFLOW, 5000),
    (TASK, SERVICE, 8000),
    (TASK, PUSHGATEWAY, 9091),
    (TASK, WORLD, 443), (NODE, WORLD, 443), (SERVICE, WORLD, 443), (MLFLOW, WORLD, 443),  # S3, the hub
    (TASK, WORLD, 6443), (DRIVER, WORLD, 6443), (DRIVER, WORLD, 443),  # the Kubernetes API
    (TASK, WORLD, 5432), (MLFLOW, WORLD, 5432),
    *((source, KUBEFLOW, port) for source in (TASK, DRIVER) for port in (8080, 8887, 8888)),
    (NODE, NODE, 29400), (NODE, NODE, 51234),
    (PROMETHEUS, MLFLOW, 9090), (PROMETHEUS, SERVICE, 8000), (PROMETHEUS, PUSHGATEWAY, 9091),
    (KUBEFLOW, PAGES, 3000), (PAGES, WORLD, 443),
]  # fmt: skip
REFUSED = [
    *((source, CLOUD_METADATA, 80) for source in (TASK, DRIVER, NODE, MLFLOW, SERVICE, PAGES)),
    *((source, CLOUD_METADATA, 443) for source in (TASK, DRIVER, NODE, MLFLOW, SERVICE, PAGES)),
    (TASK, WORLD, 22), (TASK, WORLD, 80), (TASK, KUBEFLOW, 3306), (TASK, KUBEFLOW, 22),
    (TASK, TASK, 8080), (TASK, NODE, 29400), (NODE, TASK, 8080),
    (NODE, SERVICE, 8000), (NODE, WORLD, 5432), (NODE, WORLD, 6443), (NODE, PUSHGATEWAY, 9091), (NODE, KUBEFLOW, 8888),
    (SERVICE, MLFLOW, 5000), (SERVICE, SERVICE, 8000), (MLFLOW, SERVICE, 8000), (PUSHGATEWAY, WORLD, 443),
    *((STRANGER, target, port) for target, port in ((MLFLOW, 5000), (SERVICE, 8000), (PUSHGATEWAY, 9091),
                                                     (TASK, 8080), (PAGES, 3000))),
    (PROMETHEUS, TASK, 8080), (PROMETHEUS, MLFLOW, 5000), (TASK, MLFLOW, 9090), (KUBEFLOW, MLFLOW, 5000),
]  # fmt: skip
IN_DEV = [(MLFLOW, POSTGRES, 5432), (TASK, POSTGRES, 5432)]
REFUSED_IN_DEV = [(NODE, POSTGRES, 5432), (SERVICE, POSTGRES, 5432), (POSTGRES, WORLD, 443), (STRANGER, POSTGRES, 5432)]


def selects(selector, labels):
    labels = dict(labels)
    exist = [it["key"] in labels for it in selector.get("matchExpressions", []) if it["operator"] == "Exists"]
    assert len(exist) == len(selector.get("matchExpressions", [])), "only Exists is read here"
    return selector.get("matchLabels", {}).items() <= labels.items() and all(exist)


def fits(peer, end):
    """Whether a peer of a rule is that end. An address range is taken to hold no pod, as some plugins do."""
    if block := peer.get("ipBlock"):
        narrow = block["cidr"] != "0.0.0.0/0" and block["cidr"] != f"{end.address}/32"
        return bool(end.address) and not narrow and f"{end.address}/32" not in block.get("except", [])
    if end.address:
        return False
    space = peer.get("namespaceSelector")
    if (space is None) != (end.space is None):
        return False
    if space is not None and not selects(space, {SPACE: end.space}):
        return False
    return selects(peer.get("podSelector", {}), end.labels)


def may(policies, direction, here, there, port):
    if here.space or here.address:
        return True  # not ours to say
    said = [policy["spec"] for policy in policies if selects(policy["spec"]["podSelector"], here.labels)
            and direction.capitalize() in policy["spec"]["policyTypes"]]  # fmt: skip
    side = "to" if direction == "egress" else "from"
    rules = [rule for spec in said for rule in spec.get(direction, [])]
    return not said or any(
        any(fits(peer, there) for peer in rule[side])
        and ("ports" not in rule or port in {it["port"] for it in rule["ports"] if it["protocol"] == "TCP"})
        for rule in rules
    )


def reaches(policies, source, target, port):
    return may(policies, "egress", source, target, port) and may(policies, "ingress", target, source, port)


@pytest.fixture(scope="module", params=["dev", "prod"])
def overlay(request):
    return request.param


@pytest.fixture(scope="module")
def policies(overlay):
    return [item for item in manifests.render(overlay) if item["kind"] == "NetworkPolicy"]


def test_every_arrow_that_a_run_needs_is_let_through(policies, overlay):
    arrows = NEEDED + (IN_DEV if overlay == "dev" else [])
    assert [arrow for arrow in arrows if not reaches(policies, *arrow)] == []


def test_no_other_arrow_is_let_through(policies, overlay):
    arrows = REFUSED + (REFUSED_IN_DEV if overlay == "dev" else [])
    assert [arrow for arrow in arrows if reaches(policies, *arrow)] == []


def test_a_pod_that_nobody_thought_of_may_do_nothing_but_ask_for_names(policies):
    unknown = End((("app", "unknown"),))
    for target, port in ((WORLD, 443), (MLFLOW, 5000), (SERVICE, 8000), (KUBEFLOW, 8888), (unknown, 80)):
        assert not reaches(policies, unknown, target, port)
    assert not reaches(policies, TASK, unknown, 80)
    assert reaches(policies, unknown, NAMES, 53)


def test_the_reading_of_rules_finds_what_is_missing_and_what_is_too_much(policies):
    """Without this the tests above would prove less."""
    without = [policy for policy in policies if policy["metadata"]["name"] != "task-figures"]
    assert not reaches(without, TASK, PUSHGATEWAY, 9091)
    anybody = {"metadata": {"name": "x"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"],
                                                  "ingress": [{"from": [{"namespaceSelector": {}}]}]}}  # fmt: skip
    assert reaches([*policies, anybody], STRANGER, MLFLOW, 5000)
