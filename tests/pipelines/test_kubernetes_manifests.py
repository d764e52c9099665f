"""Both overlays render, every object fits its schema, and what profiles name is there: queues, claims, services."""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipelines.profile import read_profile

SECRET_KEYS = {
    "kiwi-s3": {"access-key", "secret-key", "endpoint"}, "kiwi-mlflow-login": {"username", "password"},
    "kiwi-mlflow-admin": {"username", "password", "flask-key"},
    "kiwi-mlflow-database": {"uri", "auth-uri", "password"}, "kiwi-hugging-face": {"token"},
    "kiwi-model-services": {"api-key"}, "kiwi-registry": {"url"},
    "kiwi-alerts": {"url"},
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


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_recorded_rendering_is_what_kubectl_renders(overlay, objects):
    """Where kubectl is missing, the tests here look at the recorded one."""
    if os.environ.get("KIWI_WRITE_GOLDEN"):
        manifests.record(overlay)
    assert manifests.recorded(overlay) == objects


def test_a_recorded_rendering_of_other_files_is_refused(overlay, monkeypatch):
    monkeypatch.setattr(manifests, "heading", lambda: "# of other files\n")
    with pytest.raises(AssertionError, match="has changed since it was rendered"):
        manifests.recorded(overlay)


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
    runtime = json.loads(json.dumps(of(objects, "TrainingRuntime")["kiwi-training"]))
    del runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    found = " ".join(fault for one in (item, queue, runtime) for fault in manifests.faults(one))
    for word in ("imagePullPolcy: unknown field", "'two' is no int", "spec.selector: missing", "'lots'",
                 "spec.containers: missing"):  # fmt: skip
        assert word in found


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("V1DeploymentSpec", {"selector", "template"}), ("V1PodSpec", {"containers"}), ("V1Container", {"name"}),
        ("V1RoleBinding", {"roleRef"}), ("V1NetworkPolicySpec", {"podSelector"}), ("V1PolicyRule", {"verbs"}),
        ("V1StorageClass", {"provisioner"}), ("V1PriorityClass", {"value"}), ("V1LimitRangeSpec", {"limits"}),
        ("V1ResourceQuotaSpec", set()), ("V1HTTPGetAction", {"port"}), ("V1JobSpec", {"template"}),
    ],
)  # fmt: skip
def test_required_fields_are_known_for_every_kind_of_object(kind, fields):
    assert manifests.required(kind) == fields


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
        if name.endswith(("_BASE_URL", "_PUSHGATEWAY_URL")):
            host = urlsplit(value)
            service, namespace, _ = host.hostname.split(".")
            assert namespace == profile.namespace
            assert host.port in {port["port"] for port in services[service]["spec"]["ports"]}
    for secret in profile.secrets:
        assert set(secret.keys) <= SECRET_KEYS[secret.name]
    assert profile.training_runtime in of(objects, "TrainingRuntime")


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
        nodes = 2 if pool is profile.pools["training"] else 1  # so that `nodes: 2` is a change of one line
        assert int(quotas[flavour]["nvidia.com/gpu"]) >= pool.accelerators * nodes
        assert int(quotas[flavour]["cpu"]) >= int(pool.cpu) * nodes


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


def ports_to(policy, **labels):
    """The TCP ports on which a policy lets its pods reach pods with those labels, or the world (no labels)."""
    peer = {"podSelector": {"matchLabels": labels}} if labels else None
    return {
        port["port"]
        for rule in policy["spec"]["egress"]
        if (peer in rule["to"] if peer else any("ipBlock" in it for it in rule["to"]))
        for port in rule.get("ports", [{"port": "any"}])
    }


def test_tasks_and_training_nodes_reach_what_they_need_and_no_more(objects):
    policies = of(objects, "NetworkPolicy")
    tasks, nodes = policies["tasks"], policies["training-nodes"]
    assert ports_to(tasks) == {443, 5432, 6443}
    assert ports_to(tasks, **{"app.kubernetes.io/component": "model-service"}) == {8000}
    training = {"app.kubernetes.io/component": "training"}
    assert ports_to(nodes, **training) == {"any"}, "rendezvous and NCCL choose their ports"
    assert ports_to(nodes) == {443}, "no Kubernetes API and no database"
    assert nodes["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": training}}]}]
    (job,) = of(objects, "TrainingRuntime")["kiwi-training"]["spec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]
    assert training.items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["automountServiceAccountToken"] is False
    for policy in (policies["mlflow"], policies.get("postgres", policies["mlflow"])):
        sources = [peer["podSelector"] for rule in policy["spec"]["ingress"] for peer in rule["from"]
                   if "podSelector" in peer]  # fmt: skip
        assert {"matchLabels": {"pipelines.kubeflow.org/v2_component": "true"}} in sources


def test_the_tasks_account_may_do_what_launching_and_cleaning_up_take(objects):
    rules = of(objects, "Role")["kiwi-pipelines"]["rules"]
    may = {(group, kind): set() for rule in rules for group in rule["apiGroups"] for kind in rule["resources"]}
    for rule in rules:
        for group in rule["apiGroups"]:
            for kind in rule["resources"]:
                may[group, kind] |= set(rule["verbs"])
    assert may["trainer.kubeflow.org", "trainjobs"] == {"create", "get", "list", "delete"}
    assert may["trainer.kubeflow.org", "trainingruntimes"] == {"get"}
    assert may["", "pods"] == {"get", "list"}, "who may change a pod runs what he likes as any account"
    assert ("", "secrets") not in may
    assert may["", "pods/log"] == {"get"}


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


RESTRICTED_VOLUMES = {
    "configMap",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def not_restricted(pod):
    """How a pod departs from Kubernetes' pod security standard "restricted", in words."""
    whole = pod.get("securityContext", {})
    found = [f"volume {it['name']}" for it in pod.get("volumes", []) if not {*it} - {"name"} <= RESTRICTED_VOLUMES]
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        seccomp = own.get("seccompProfile", whole.get("seccompProfile", {})).get("type")
        held = {
            "privilege escalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities", {}).get("drop") == ["ALL"] and not own["capabilities"].get("add"),
            "root": own.get("runAsNonRoot", whole.get("runAsNonRoot")) is True,
            "user": own.get("runAsUser", whole.get("runAsUser", 1000)) != 0,
            "seccomp": seccomp == "RuntimeDefault",
            "privileged": not own.get("privileged"),
            "host ports": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        found += [f"{container['name']}: {what}" for what, fine in held.items() if not fine]
    return found


def test_every_pod_of_ours_is_what_the_standard_restricted_asks_for(objects):
    pods = {name: item["spec"]["template"]["spec"] for name, item in workloads(objects).items()}
    (job,) = of(objects, "TrainingRuntime")["kiwi-training"]["spec"]["template"]["spec"]["replicatedJobs"]
    pods["a node of a TrainJob"] = job["template"]["spec"]["template"]["spec"]
    assert {name: said for name, pod in pods.items() if (said := not_restricted(pod))} == {}


def test_a_pod_that_departs_from_the_standard_is_found(objects):
    """Without this the test above would prove nothing."""
    pod = json.loads(json.dumps(of(objects, "Deployment")["mlflow"]["spec"]["template"]["spec"]))
    pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    del pod["securityContext"]["seccompProfile"]
    pod["containers"][0]["securityContext"]["capabilities"] = {"add": ["NET_ADMIN"], "drop": ["ALL"]}
    unconfined = {f"{name}: seccomp" for name in ("mlflow", "figures", "login")}
    assert {"volume host", "mlflow: capabilities", *unconfined} == set(not_restricted(pod))


def total(amounts):
    from kubernetes.utils import parse_quantity

    return sum((parse_quantity(str(it)) for it in amounts if it is not None), start=parse_quantity("0"))


def test_the_namespaces_quota_has_room_for_the_services_and_all_that_the_queue_may_admit(objects):
    """A pod beyond the quota is refused when it is made, which no queue waits for."""
    (hard,) = (item["spec"]["hard"] for item in of(objects, "ResourceQuota").values())
    (queue,) = of(objects, "ClusterQueue").values()
    flavours = [flavour for group in queue["spec"]["resourceGroups"] for flavour in group["flavors"]]
    for resource in ("cpu", "memory", "nvidia.com/gpu"):
        held = [
            container["resources"]["requests"].get(resource)
            for item in workloads(objects).values()
            for container in item["spec"]["template"]["spec"]["containers"] * item["spec"]["replicas"]
        ]
        admitted = [it["nominalQuota"] for flavour in flavours for it in flavour["resources"] if it["name"] == resource]
        assert total(held + admitted) <= total([hard[f"requests.{resource}"]]), resource
    claims = [
        item["spec"]["resources"]["requests"]["storage"] for item in of(objects, "PersistentVolumeClaim").values()
    ]
    assert total(claims) <= total([hard["requests.storage"]])


def test_every_monitor_finds_a_service_with_that_port(objects):
    monitors = of(objects, "ServiceMonitor")
    assert set(monitors) == {"kiwi-model-services", "kiwi-runs", "kiwi-mlflow"}
    for monitor in monitors.values():
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [it for it in of(objects, "Service").values() if wanted <= it["metadata"].get("labels", {}).items()]
        assert len(found) == (4 if monitor["metadata"]["name"] == "kiwi-model-services" else 1)
        for endpoint in monitor["spec"]["endpoints"]:
            assert all(endpoint["port"] in {port["name"] for port in it["spec"]["ports"]} for it in found)
    assert monitors["kiwi-runs"]["spec"]["endpoints"][0]["honorLabels"], "a run's labels, not the gateway's"


def test_mlflows_figures_are_told_without_its_administrators_login(objects):
    """The server shows /metrics to its administrator alone; a neighbour tells what it wrote, without a login."""
    found = {it["name"]: it for it in of(objects, "Deployment")["mlflow"]["spec"]["template"]["spec"]["containers"]}
    assert "--expose-prometheus=/figures" in found["mlflow"]["args"]
    mounts = {name: {it["mountPath"]: it.get("readOnly", False) for it in one["volumeMounts"]} for name, one in
              found.items()}  # fmt: skip
    assert (mounts["mlflow"]["/figures"], mounts["figures"]["/figures"]) == (False, True)
    assert not found["figures"].get("env"), "it holds no secret"
    compile(found["figures"]["args"][0], "args", "exec")


def test_what_was_pushed_outlives_the_pushgateway(objects):
    pod = of(objects, "Deployment")["pushgateway"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    file = next(it.split("=")[1] for it in container["args"] if it.startswith("--persistence.file"))
    (mount,) = container["volumeMounts"]
    assert file.startswith(mount["mountPath"])
    assert pod["volumes"] == [{"name": mount["name"], "persistentVolumeClaim": {"claimName": "kiwi-figures"}}]
    assert pod["securityContext"]["fsGroup"], "a new volume belongs to root"


def test_kfp_keeps_what_tasks_hand_on_where_the_profile_says_with_the_tasks_own_login(objects, overlay):
    import yaml

    data = of(objects, "ConfigMap")["kfp-launcher"]["data"]
    profile = read_profile(overlay, with_image=False)
    assert profile.pipeline_root in (None, data["defaultPipelineRoot"])
    (bucket,) = {value.split("/")[2] for value in (data["defaultPipelineRoot"], profile.environment["KIWI_DVC_REMOTE"])}
    assert bucket == profile.namespace
    assert yaml.safe_load(data["providers"])["s3"]["default"]["credentials"] == {"fromEnv": True}
    login = next(secret for secret in profile.secrets if secret.name == "kiwi-s3")
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(login.keys.values())
    assert not login.tasks, "each task has it"


def test_each_task_that_asks_a_model_service_has_its_key(objects, overlay):
    profile = read_profile(overlay, with_image=False)
    (container,) = containers(of(objects, "Deployment")["judging"])
    key = next(it["valueFrom"]["secretKeyRef"] for it in container["env"] if it["name"] == "VLLM_API_KEY")
    for task in ("score", "ground", "verify", "judge"):
        held = {variable: (secret.name, which) for secret in profile.secrets_of(task)
                for which, variable in secret.keys.items()}  # fmt: skip
        assert held[f"KIWI_VLM_{task.upper()}_API_KEY"] == (key["name"], key["key"])


def test_the_first_task_looks_for_every_key_of_a_secret_that_several_tasks_share(overlay):
    from pipelines.placing import needs

    wanted = json.loads(needs(read_profile(overlay, with_image=False)))["secrets"]["kiwi-model-services"]
    assert wanted == [f"KIWI_VLM_{task}_API_KEY" for task in ("SCORE", "GROUND", "VERIFY", "JUDGE")]


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


def test_each_model_service_is_ready_only_when_it_answers_and_keeps_its_weights(objects, overlay):
    for name in ("editscore", "grounding", "verification", "judging"):
        pod = of(objects, "Deployment")[name]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        said = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert container["readinessProbe"]["httpGet"]["path"] == "/health"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == said["GPUS"]
        assert pod["nodeSelector"] == {"kiwi.dev/pool": "gpu" if overlay == "dev" else "serving"}
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
