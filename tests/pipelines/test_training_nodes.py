"""A pool of several nodes: train_stage becomes the launcher of a TrainJob that has all that the pool says of a pod."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kiwi.cluster.train_jobs import Placement, train_job
from kiwi.errors import UsageError
from pipelines.profile import read_profile, seconds

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = "registry.example/kiwi:0123456789abcdef0123456789abcdef01234567"

_spec = importlib.util.spec_from_file_location("manifests", Path(__file__).with_name("manifests.py"))
manifests = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(manifests)


@pytest.fixture(scope="module")
def profile_file(tmp_path_factory):
    """prod with `nodes: 2` for training: the one line that a team changes."""
    text = (REPOSITORY / "infra" / "profiles" / "prod.yaml").read_text()
    assert text.count("    nodes: 1\n") == 1
    path = tmp_path_factory.mktemp("profile") / "two-nodes.yaml"
    path.write_text(text.replace("    nodes: 1\n", "    nodes: 2\n"))
    return path


@pytest.fixture(scope="module")
def text(profile_file):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KIWI_")}
    done = subprocess.run(
        [sys.executable, "-m", "kiwi", "pipeline", "compile", "curriculum", "--profile", str(profile_file),
         "--out", "out.yaml"],
        env={**kept, "KIWI_IMAGE": IMAGE, "HF_TOKEN": "canary", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, cwd=profile_file.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (profile_file.parent / "out.yaml").read_text()


@pytest.fixture(scope="module")
def executors(text):
    """Component → its container, and what Kubernetes is told of it."""
    spec, platform = yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {
        label.removeprefix("exec-"): (it["container"], placed[label])
        for label, it in spec["deploymentSpec"]["executors"].items()
    }


def variables(container):
    return {it["name"]: it["value"] for it in container["env"]}


@pytest.fixture(scope="module")
def placement(executors):
    return Placement(**json.loads(variables(executors["train-stage"][0])["KIWI_TRAIN_JOB"]))


def test_the_launcher_takes_no_gpu_and_waits_as_long_as_training(executors, profile_file):
    profile = read_profile(str(profile_file), with_image=False)
    for stage in ("train-stage", "train-stage-2", "train-stage-3"):
        container, placed = executors[stage]
        assert "accelerator" not in container["resources"]
        assert placed["nodeSelector"]["labels"] == profile.pools["control"].selectors
        assert container["resources"]["resourceCpuRequest"] == profile.pools["control"].cpu, "it waits for days"
        assert int(placed["activeDeadlineSeconds"]) == seconds(profile.task("train_stage").timeout)
        assert variables(container)["KIWI_NODES"] == "2"
        assert variables(container)["KIWI_PROCESSES"] == "8"


def test_the_nodes_get_what_the_pool_says_of_a_pod(placement, profile_file):
    profile = read_profile(str(profile_file), with_image=False)
    pool = profile.pools["training"]
    assert (placement.nodes, placement.processes, placement.image) == (2, 8, IMAGE)
    assert placement.resources["requests"] == {"cpu": "96", "memory": "1024Gi", "nvidia.com/gpu": "8"}
    assert placement.resources["limits"] == {"memory": "1024Gi", "nvidia.com/gpu": "8"}
    assert placement.pod["nodeSelector"] == pool.selectors
    assert {taint["key"] for taint in placement.pod["tolerations"]} == {"nvidia.com/gpu", "kiwi.dev/training"}
    assert {mount["mountPath"] for mount in placement.mounts} == {"/work", "/dev/shm", "/scratch"}
    assert {volume["name"] for volume in placement.pod["volumes"]} == {mount["name"] for mount in placement.mounts}
    assert {"name": "scratch", "emptyDir": {"sizeLimit": pool.scratch}} in placement.pod["volumes"]
    assert "fsGroup" not in placement.pod["securityContext"], "so that nobody changes the owner of all work folders"
    assert placement.labels["kueue.x-k8s.io/queue-name"] == profile.queue
    assert placement.deadline == seconds(profile.task("train_stage").timeout)
    assert placement.pod["securityContext"]["runAsNonRoot"] is True


def test_a_scratch_volume_of_a_storage_class_is_the_users_own(profile_file):
    """A new volume belongs to root, and the nodes are user 1000."""
    from pipelines.training_nodes import _pod

    profile = read_profile(str(profile_file), with_image=False)
    pod = _pod(profile, profile.pools["training"].model_copy(update={"scratch_class": "kiwi-scratch"}))
    (scratch,) = [volume for volume in pod["volumes"] if volume["name"] == "scratch"]
    claim = scratch["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]) == ("kiwi-scratch", {"storage": "1000Gi"})
    assert pod["securityContext"]["fsGroup"] == 1000


def test_secrets_go_to_the_nodes_by_name_and_no_value_stands_in_the_specification(text, placement):
    named = {it["name"]: (it["secret"], it["key"]) for it in placement.secrets}
    assert named["HF_TOKEN"] == ("kiwi-hugging-face", "token")
    assert named["AWS_SECRET_ACCESS_KEY"] == ("kiwi-s3", "secret-key")
    assert "KIWI_VLM_JUDGE_API_KEY" not in named, "training asks no judge"
    assert "canary" not in text


def test_the_train_job_of_the_profile_fits_trainers_schema(placement):
    job = train_job("kiwi-stage1-0", "kiwi", "stage1", ["python"], placement)
    assert manifests.faults(job) == []
    job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"][
        "spec"
    ]["template"]["spec"]["priority"] = 1
    assert manifests.faults(job) != [], "without this the check would prove nothing"


def test_the_first_and_the_last_task_know_of_the_nodes(executors):
    needs = json.loads(variables(executors["prerequisites"][0])["KIWI_NEEDS"])
    assert needs["training_runtime"] == "kiwi-training"
    assert needs["accelerators"] == {"nvidia.com/gpu": 16}
    assert "KIWI_TRAIN_JOB" in variables(executors["finish"][0]), "the exit task deletes what is left"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("training_runtime: kiwi-training\n", ""), "no `training_runtime:` is named"),
        (("  run_benchmark: {pool: diffusion}", "  run_benchmark: {pool: training}"), "'run_benchmark' is in a pool"),
        (("\npool: control\n", "\npool: training\n"), "in a pool of several nodes"),
        (("    nodes: 2\n", "    nodes: 0\n"), "pools.training.nodes"),
    ],
    ids=["no runtime", "another task", "all tasks", "none"],
)
def test_a_pool_of_several_nodes_that_cannot_work_is_refused(tmp_path, profile_file, change, said):
    text = profile_file.read_text()
    assert change[0] in text
    (tmp_path / "mine.yaml").write_text(text.replace(*change))
    with pytest.raises(UsageError, match=said):
        read_profile(str(tmp_path / "mine.yaml"))
