"""The specification that a cluster gets: each task's place, patience, secrets by name; beside a golden copy of it.

`KIWI_WRITE_GOLDEN=1 pytest tests/pipelines/test_cluster_pipelines.py` writes the golden copies anew, to be looked at.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.profile import read_profile, seconds

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
IMAGE = "registry.example/kiwi:0123456789abcdef0123456789abcdef01234567"
SECRETS = {"AWS_SECRET_ACCESS_KEY": "canary-one", "HF_TOKEN": "canary-two", "MLFLOW_TRACKING_PASSWORD": "canary-three",
           "KIWI_VLM_JUDGE_API_KEY": "canary-four", "KIWI_KFP_TOKEN": "canary-five",
           "KIWI_REGISTRY_URL": "postgresql://canary-six", "KIWI_ALERT_URL": "https://canary-seven"}  # fmt: skip
VISION, DIFFUSION = {"segment", "unique_crops", "deduplicate"}, {"synthesize", "cache_latents", "run_benchmark"}
COMPILED = [("end_to_end", "prod"), ("retrain", "prod"), ("refvie", "prod"), ("curriculum", "prod"),
            ("evaluation", "prod"), ("end_to_end", "dev")]  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Every pipeline, compiled in one process for each profile; components read the profile when they are imported."""
    folder = tmp_path_factory.mktemp("compiled")
    script = (
        "import sys; from pathlib import Path; from pipelines.compiling import compile_pipeline\n"
        "for name in sys.argv[3:]: compile_pipeline(Path(sys.argv[1]) / f'{name}-{sys.argv[2]}.yaml', sys.argv[2],"
        " pipeline=name)"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KIWI_")}
    for profile in ("prod", "dev"):
        names = [name for name, where in COMPILED if where == profile]
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder), profile, *names],
            env={**kept, **SECRETS, "KIWI_IMAGE": IMAGE, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True, text=True, cwd=REPOSITORY,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return {(name, profile): (folder / f"{name}-{profile}.yaml").read_text() for name, profile in COMPILED}


@pytest.fixture(scope="module")
def compiled(texts):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {key: list(yaml.load_all(text, loader)) for key, text in texts.items()}


def executors(documents):
    """Component → what its container asks for, and what Kubernetes is told of it."""
    spec, platform = documents
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    found = {}
    for label, executor in spec["deploymentSpec"]["executors"].items():
        name = label.removeprefix("exec-").rstrip("-0123456789").replace("-", "_")
        found.setdefault(name, []).append((executor["container"], placed[label]))
    return found


def tasks(documents):
    spec = documents[0]
    dags = [spec["root"], *(it for it in spec["components"].values() if "dag" in it)]
    return {
        name: task
        for dag in dags
        for name, task in dag["dag"]["tasks"].items()
        if "dag" not in spec["components"][task["componentRef"]["name"]]
    }


@pytest.mark.parametrize("which", COMPILED, ids="-".join)
def test_every_task_has_a_place_a_timeout_and_the_work_folder(compiled, which):
    profile = read_profile(which[1], with_image=False)
    for name, copies in executors(compiled[which]).items():
        for container, placed in copies:
            pool = profile.pools[profile.task(name).pool]
            assert container["image"] == IMAGE
            assert container["resources"]["resourceCpuRequest"] == pool.cpu
            assert container["resources"]["resourceMemoryLimit"] == pool.memory
            assert container["resources"]["resourceMemoryRequest"] == pool.memory
            assert placed["nodeSelector"]["labels"] == pool.selectors, name
            assert int(placed["activeDeadlineSeconds"]) == seconds(profile.task(name).timeout)
            assert placed["podMetadata"]["labels"]["kueue.x-k8s.io/queue-name"] == profile.queue
            assert [(it["constant"], it["mountPath"]) for it in placed["pvcMount"]] == [("kiwi-work", "/work")]
            assert placed["securityContext"]["runAsNonRoot"] is True
            assert placed["fieldPathAsEnv"] == [
                {"name": "KIWI_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}
            ]


def test_gpus_go_to_the_tasks_whose_models_run_in_them(compiled):
    found = executors(compiled["end_to_end", "prod"])
    gpus = {name: int(it["resources"].get("accelerator", {}).get("resourceCount", 0)) for name, ((it, _), *_) in
            found.items()}  # fmt: skip
    assert {name for name, count in gpus.items() if count == 1} == VISION | DIFFUSION
    assert {name for name, count in gpus.items() if count > 1} == {"train_stage"}
    for name in VISION | DIFFUSION | {"train_stage"}:
        container, placed = found[name][0]
        assert container["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert any(taint["key"] == "nvidia.com/gpu" for taint in placed["tolerations"])
        sizes = {it["mountPath"]: (it.get("medium"), it["sizeLimit"]) for it in placed["emptyDirMounts"]}
        pool = read_profile("prod", with_image=False).pools[read_profile("prod", with_image=False).task(name).pool]
        assert sizes == {"/dev/shm": ("Memory", pool.shared_memory), "/scratch": (None, pool.scratch)}
        assert placed["nodeAffinity"]
    assert not found["score"][0][1].get("tolerations")
    assert [it["mountPath"] for it in found["score"][0][1]["emptyDirMounts"]] == ["/scratch"]


def test_tasks_that_only_look_decide_or_wait_take_no_large_place(compiled):
    """A task of seconds, with the place of one that decodes videos for hours, may wait long for a node."""
    light = {"prerequisites", "find_dataset", "find_model", "compare_dataset", "rest", "decide", "promote", "hold"}
    pool = read_profile("prod", with_image=False).pools["control"]
    for which in (("end_to_end", "prod"), ("retrain", "prod"), ("evaluation", "prod")):
        for name, copies in executors(compiled[which]).items():
            small = [it["resources"]["resourceMemoryLimit"] == pool.memory for it, _ in copies]
            assert all(small) if name in light else not any(small), name
            if name in light:
                assert not copies[0][1].get("emptyDirMounts")


def test_only_training_bears_the_taint_of_the_training_nodes(compiled):
    bearing = {
        name
        for name, copies in executors(compiled["end_to_end", "prod"]).items()
        if any(taint["key"] == "kiwi.dev/training" for _, it in copies for taint in it.get("tolerations", []))
    }
    assert bearing == {"train_stage"}


@pytest.mark.parametrize("which", COMPILED, ids="-".join)
def test_no_secret_stands_in_a_specification(texts, which):
    assert "canary" not in texts[which]


def test_a_secret_is_named_where_it_is_needed_and_nowhere_else(compiled):
    holders = {}
    for name, copies in executors(compiled["end_to_end", "prod"]).items():
        for secret in copies[0][1]["secretAsEnv"]:
            for key in secret["keyToEnv"]:
                holders.setdefault(key["envVar"], set()).add((name, secret["secretName"], secret["optional"]))
    assert holders["KIWI_VLM_SCORE_API_KEY"] == {
        ("score", "kiwi-model-services", False), ("prerequisites", "kiwi-model-services", True)
    }  # fmt: skip
    assert {name for name, _, _ in holders["HF_TOKEN"]} == VISION | DIFFUSION | {"train_stage", "prerequisites"}
    assert holders["KIWI_ALERT_URL"] == {("finish", "kiwi-alerts", True), ("prerequisites", "kiwi-alerts", True)}
    registry = {"register_model", "report", "decide", "promote", "hold", "finish", "prerequisites"}
    assert {name for name, _, _ in holders["KIWI_REGISTRY_URL"]} == registry
    assert len(holders["AWS_SECRET_ACCESS_KEY"]) == len(executors(compiled["end_to_end", "prod"]))


@pytest.mark.parametrize("which", COMPILED, ids="-".join)
def test_every_task_is_tried_again_as_the_profile_says_and_never_cached(compiled, which):
    profile = read_profile(which[1], with_image=False)
    for name, task in tasks(compiled[which]).items():
        component = name.rstrip("-0123456789").replace("-", "_")
        assert task["retryPolicy"]["maxRetryCount"] == profile.task(component).retries, name
        assert not task["cachingOptions"], name
    assert profile.task("train_stage").retries > profile.retries, "training resumes, so it is tried more often"


@pytest.mark.parametrize("which", COMPILED, ids="-".join)
def test_the_check_comes_before_all_work_and_the_exit_task_after(compiled, which):
    spec = compiled[which][0]
    root = spec["root"]["dag"]["tasks"]
    assert root["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    (inner,) = [name for name in root if name != "finish"]
    within = spec["components"][root[inner]["componentRef"]["name"]]["dag"]["tasks"]
    waiting = {name: set(task.get("dependentTasks", [])) for name, task in within.items()}
    reached, grown = {"prerequisites"}, True
    while grown:
        grown = {name for name, before in waiting.items() if before & reached} - reached
        reached |= grown
    assert waiting["prerequisites"] == set()
    assert reached == set(within), "every other task waits for it"


def test_a_laptop_has_no_task_for_the_check():
    assert not read_profile("local").prerequisites


@pytest.mark.parametrize("which", COMPILED, ids="-".join)
def test_the_specification_stays_far_below_the_limit_of_a_workflow(texts, which):
    """50 shards are one loop over a list that the planner returns, so they add nothing here."""
    from kiwi.cluster.submitting import WORKFLOW_LIMIT
    from kiwi.configuration import CurationSettings

    assert CurationSettings(shards=50).shards == 50
    assert len(texts[which].encode()) < WORKFLOW_LIMIT / 4


def test_the_fan_out_is_a_loop_with_an_upper_bound(compiled):
    spec = compiled["end_to_end", "prod"][0]
    loops = [task for it in spec["components"].values() if "dag" in it for task in it["dag"]["tasks"].values()
             if "parameterIterator" in task]  # fmt: skip
    assert len(loops) == 2
    assert all(loop["iteratorPolicy"]["parallelismLimit"] == 16 for loop in loops)


def test_retraining_trains_only_on_the_branch_of_something_newer(compiled):
    spec = compiled["retrain", "prod"][0]
    found = {name: task["triggerPolicy"]["condition"] for it in spec["components"].values() if "dag" in it
             for name, task in it["dag"]["tasks"].items() if "condition" in task.get("triggerPolicy", {})}  # fmt: skip
    branches = [text for text in found.values() if "compare-dataset" in text]
    assert len(branches) == 2
    assert all("'train'" in text for text in branches)


@pytest.mark.parametrize("which", [("end_to_end", "prod"), ("retrain", "prod")], ids="-".join)
def test_the_specification_is_that_of_the_golden_copy(compiled, which):
    """All but the components' source text and the version of kfp, which change without changing the graph."""
    spec, platform = compiled[which]
    spec = {key: value for key, value in spec.items() if key != "sdkVersion"}
    spec["deploymentSpec"] = {"executors": {
        label: {"container": {key: value for key, value in it["container"].items() if key not in ("command", "args")}}
        for label, it in spec["deploymentSpec"]["executors"].items()
    }}  # fmt: skip
    file = GOLDEN / f"{'-'.join(which)}.yaml"
    text = yaml.safe_dump_all([spec, platform], sort_keys=True, width=120)
    if os.environ.get("KIWI_WRITE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), "look at the difference; KIWI_WRITE_GOLDEN=1 writes it anew"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pool: gpu\n", "no pool 'gpu'"),
        ("pools: {gpu: {cpu: lots}}\n", "pools.gpu.cpu"),
        ("pools: {gpu: {gpus: 8}}\n", "no setting 'gpus' in pools.gpu"),
        ("pools: {gpu: {cpu: 8Gi}}\n", "no number of cores"),
        ("pools: {gpu: {memory: 500m}}\n", "no amount of bytes"),
        ("pools: {gpu: {memory: 16GB}}\n", "'16GB' is no amount"),
        ("pools: {gpu: {memory: 0Gi}}\n", "no amount of bytes"),
        ("pools: {gpu: {cpu: '8', cpu_limit: '4'}}\n", "at least `cpu`"),
        ("pools: {gpu: {accelerators: 2}}\n", "give both, or neither"),
        ("pools: {gpu: {accelerator: nvidia.com/gpu}}\n", "give both, or neither"),
        ("pools: {gpu: {memory: 4Gi, shared_memory: 8Gi}}\n", "counts as memory"),
        ("pools: {gpu: {scratch_class: fast}}\n", "whose size `scratch` says"),
        ("pools: {gpu: {selectors: {'kiwi.dev/pool ': gpu}}}\n", "no key of a label|no value of a label"),
        ("pools: {gpu: {tolerations: [{key: a, operator: Equal}]}}\n", "Equal compares with a value"),
        ("pools: {gpu: {tolerations: [{key: a, value: b}]}}\n", "Exists with none"),
        ("pools: {gpu: {affinity: [{key: a}]}}\n", "In and NotIn compare with values"),
        ("pools: {gpu: {affinity: [{key: a, operator: Gt, values: [many]}]}}\n", "one whole number"),
        ("secrets: [{name: Kiwi_S3, keys: {a: B}}]\n", "'Kiwi_S3' is no name in Kubernetes"),
        ("secrets: [{keys: {a: B}}]\n", "secrets.0.name"),
        ("secrets: [{name: s, keys: {}}]\n", "secrets.0.keys"),
        ("secrets: [{name: s, keys: {a: B-C}}]\n", "'B-C' is no name of an environment variable"),
        ("secrets: [{name: s, keys: {a: B}}, {name: t, keys: {a: B}}]\n", "B is said twice for every task"),
        ("environment: {B: x}\nsecrets: [{name: s, keys: {a: B}, tasks: [judge]}]\n", "B is said twice for judge"),
        ("volume: {claim: work, path: work}\n", "volume.path"),
        ("queue: My Queue\n", "no name in Kubernetes"),
        ("timeout: 5 hours\n", "no time such as"),
        ("tasks: {trian_stage: {retries: 1}}\n", "no component 'trian_stage'"),
        ("secrets: [{name: x}]\n", "secrets.0.keys"),
        ("- a\n", "the file"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused_with_the_setting_named(tmp_path, text, said):
    from kiwi.errors import UsageError

    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_profile(str(tmp_path / "mine.yaml"))
