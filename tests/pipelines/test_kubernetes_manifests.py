"""Both overlays render, every object fits its schema, and what profiles name is there: queues, claims, services."""

import importlib.util
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipelines.profile import read_profile

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
SECRET_KEYS = {
    "kiwi-s3": {"access-key", "secret-key", "endpoint"}, "kiwi-mlflow-login": {"username", "password"},
    "kiwi-mlflow-admin": {"username", "password", "flask-key"},
    "kiwi-mlflow-database": {"uri", "auth-uri", "password"}, "kiwi-hugging-face": {"token"},
    "kiwi-model-services": {"api-key"},
}  # fmt: skip
CLUSTER_WIDE = {"Namespace", "StorageClass", "PriorityClass", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass"}

_spec = importlib.util.spec_from_file_location("manifests", Path(__file__).with_name("manifests.py"))
manifests = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(manifests)


@pytest.fixture(scope="module", params=["dev", "prod"])
def overlay(request):
    return request.param


@pytest.fixture(scope="module")
def objects(overlay):
    return manifests.render(overlay)


def of(objects, kind):
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def workloads(objects):
    return {**of(objects, "Deployment"), **of(objects, "StatefulSet")}


def containers(item):
    pod = item["spec"]["template"]["spec"]
    return [*pod["containers"], *pod.get("initContainers", [])]


def test_every_object_fits_its_schema(objects):
    assert [said for item in objects for said in manifests.faults(item)] == []


def test_a_misspelt_field_a_wrong_type_and_a_missing_field_are_found(objects):
    """The schema check works: without it the test above would prove nothing."""
    item = json.loads(json.dumps(of(objects, "Deployment")["mlflow"]))
    item["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    item["spec"]["replicas"] = "two"
    del item["spec"]["selector"]
    queue = json.loads(json.dumps(next(iter(of(objects, "ClusterQueue").values()))))
    queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]["nominalQuota"] = "lots"
    found = " ".join(manifests.faults(item) + manifests.faults(queue))
    for word in ("imagePullPolcy: unknown field", "'two' is no int", "selector", "'lots'"):
        assert word in found


def test_everything_lies_in_the_profiles_namespace(objects, overlay):
    namespace = read_profile(overlay, with_image=False).namespace
    assert list(of(objects, "Namespace")) == [namespace]
    spaces = {item["metadata"].get("namespace") for item in objects if item["kind"] not in CLUSTER_WIDE}
    assert spaces == {namespace}


def test_what_the_profile_names_is_there(objects, overlay):
    profile = read_profile(overlay, with_image=False)
    assert profile.queue in of(objects, "LocalQueue")
    assert profile.volume.claim in of(objects, "PersistentVolumeClaim")
    assert profile.service_account in of(objects, "ServiceAccount")
    classes = {pool.priority for pool in profile.pools.values()} - {None}
    assert classes <= set(of(objects, "WorkloadPriorityClass"))
    assert {pool.scratch_class for pool in profile.pools.values()} - {None} <= set(of(objects, "StorageClass"))
    services = of(objects, "Service")
    for name, value in profile.environment.items():
        if name.endswith("_BASE_URL"):
            host = urlsplit(value)
            service, namespace, _ = host.hostname.split(".")
            assert namespace == profile.namespace
            assert host.port in {port["port"] for port in services[service]["spec"]["ports"]}
    for secret in profile.secrets:
        assert set(secret.keys) <= SECRET_KEYS[secret.name]


def test_every_pool_fits_a_flavour_and_the_quota(objects, overlay):
    profile = read_profile(overlay, with_image=False)
    labels = {name: item["spec"]["nodeLabels"] for name, item in of(objects, "ResourceFlavor").items()}
    (queue,) = of(objects, "ClusterQueue").values()
    (local,) = of(objects, "LocalQueue").values()
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    quotas = {flavour["name"]: {it["name"]: it["nominalQuota"] for it in flavour["resources"]} for flavour in
              group["flavors"]}  # fmt: skip
    assert set(quotas) == set(labels)
    for pool in profile.pools.values():
        (flavour,) = [name for name, it in labels.items() if it == pool.selectors]
        assert int(quotas[flavour]["nvidia.com/gpu"]) >= pool.accelerators
        assert int(quotas[flavour]["cpu"]) >= int(pool.cpu)


def test_nothing_may_talk_unless_it_is_listed(objects):
    policies = of(objects, "NetworkPolicy")
    deny = policies["default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies.values():
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                    assert "169.254.169.254/32" in peer["ipBlock"]["except"], "no cloud metadata"
                    assert rule["ports"]


def test_roles_name_what_they_allow(objects):
    for role in of(objects, "Role").values():
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            if "secrets" in rule["resources"]:
                assert rule["resourceNames"]
                assert rule["verbs"] == ["get"]
    assert not of(objects, "ClusterRole")
    assert not of(objects, "ClusterRoleBinding")


def test_no_container_runs_as_root_or_can_become_it(objects):
    for name, item in workloads(objects).items():
        assert item["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True, name
        for container in containers(item):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"], name
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"], name  # noqa: PT018


def test_no_object_holds_a_secret_and_each_named_one_is_documented(objects):
    assert not of(objects, "Secret")
    for item in workloads(objects).values():
        for container in containers(item):
            for variable in container.get("env", []):
                named = variable.get("valueFrom", {}).get("secretKeyRef")
                assert not named or named["key"] in SECRET_KEYS[named["name"]]
                secretive = any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "SECRET", "API_KEY"))
                assert named or not secretive, variable["name"]
    text = (manifests.K8S.parents[1] / "docs" / "cluster.md").read_text()
    assert all(name in text for name in SECRET_KEYS)


def test_each_model_service_is_ready_only_when_it_answers_and_keeps_its_weights(objects):
    for name in ("editscore", "grounding", "verification", "judging"):
        pod = of(objects, "Deployment")[name]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        said = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert container["readinessProbe"]["httpGet"]["path"] == "/health"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == said["GPUS"]
        assert "kiwi.dev/pool" in pod["nodeSelector"]
        claims = [it["persistentVolumeClaim"]["claimName"] for it in pod["volumes"] if "persistentVolumeClaim" in it]
        assert claims == ["kiwi-models"]
        assert name in of(objects, "PodDisruptionBudget")
        selected = of(objects, "Service")[name]["spec"]["selector"]
        assert selected.items() <= of(objects, "Deployment")[name]["spec"]["template"]["metadata"]["labels"].items()


def test_services_serve_the_models_that_the_presets_ask_for(objects):
    from kiwi.configuration import BenchmarkSettings, CurationSettings

    curation = CurationSettings()
    asked = {"editscore": curation.vlm_score, "grounding": curation.vlm_ground, "verification": curation.vlm_verify,
             "judging": BenchmarkSettings().mllm}  # fmt: skip
    for name, settings in asked.items():
        (container,) = containers(of(objects, "Deployment")[name])
        served = next(it["value"] for it in container["env"] if it["name"] == "SERVED_AS")
        assert served == settings.model


def test_only_dev_stops_its_model_services_between_runs(objects, overlay):
    scaled = of(objects, "ScaledObject")
    assert set(scaled) == ({"editscore", "grounding", "verification", "judging"} if overlay == "dev" else set())
    assert all(item["spec"]["minReplicaCount"] == 0 for item in scaled.values())


def test_each_alert_says_what_to_do_and_the_dashboard_shows_what_was_asked(objects):
    (rules,) = of(objects, "PrometheusRule").values()
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) >= 6
    assert all(alert["annotations"]["remedy"] and alert["labels"]["severity"] for alert in alerts)
    board = json.loads(of(objects, "ConfigMap")["kiwi-dashboard"]["data"]["dashboard.json"])
    titles = " ".join(panel["title"] for panel in board["panels"])
    assert all(word in titles for word in ("Tasks", "Failed", "tokens a second", "GPU use", "Spend"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
