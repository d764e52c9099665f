"""The compiled KFP YAML of the end-to-end pipeline: its tasks, their retries, images and branches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = {
    "plan-shards", "ingest", "score", "ground", "segment", "unique-crops", "synthesize", "verify",
    "deduplicate", "publish-dataset",
    "cache-latents", "train-stage", "train-stage-2", "train-stage-3", "run-benchmark", "judge", "register-model",
    "report", "decide", "promote", "hold", "finish",
}  # fmt: skip
SHA = "0123456789abcdef0123456789abcdef01234567"


def compile_yaml(out: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KIWI_")}
    return subprocess.run(
        [sys.executable, "-m", "kiwi", "pipeline", "compile", "--out", str(out), *more],
        env={**kept, **variables, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        cwd=out.parent,
    )


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    out = tmp_path_factory.mktemp("yaml") / "pipeline.yaml"
    done = compile_yaml(out)
    assert done.returncode == 0, done.stderr
    return next(document for document in yaml.safe_load_all(out.read_text()) if "root" in document)


def dags(spec):
    return [spec["root"], *(it for it in spec["components"].values() if "dag" in it)]


def tasks(spec):
    return {name: task for dag in dags(spec) for name, task in dag["dag"]["tasks"].items()}


def executed(spec):
    return {name: it for name, it in tasks(spec).items() if "dag" not in spec["components"][it["componentRef"]["name"]]}


def test_every_task_of_the_story_is_there(spec):
    assert set(executed(spec)) == TASKS


def test_every_task_is_retried_named_and_uncached(spec):
    for name, task in executed(spec).items():
        assert task["retryPolicy"]["maxRetryCount"] >= 1, name
        assert task["taskInfo"]["name"] != name, "people read a title"
        assert not task["cachingOptions"], name


def test_the_three_training_stages_are_one_component_chained_by_its_model(spec):
    trained = {name: task for name, task in tasks(spec).items() if name.startswith("train-stage")}
    bodies = {
        spec["deploymentSpec"]["executors"][spec["components"][task["componentRef"]["name"]]["executorLabel"]][
            "container"
        ]["command"][-1]
        for task in trained.values()
    }
    assert len(trained) == 3
    assert len(bodies) == 1, "one component"
    assert "artifacts" in trained["train-stage-3"]["inputs"]
    assert "previous" in trained["train-stage-3"]["inputs"]["artifacts"]
    assert "previous" not in trained["train-stage"]["inputs"]["artifacts"]


def test_the_exit_task_runs_whatever_happened(spec):
    root = spec["root"]["dag"]["tasks"]
    assert root["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert set(root) == {"finish", "run"} or len(root) == 2, "the exit handler is outermost"


def test_the_page_that_a_cluster_shows_is_of_the_task_that_knows_the_decision(spec):
    makers = {
        name
        for name, task in executed(spec).items()
        for artifact in spec["components"][task["componentRef"]["name"]]
        .get("outputDefinitions", {}).get("artifacts", {}).values()
        if artifact["artifactType"]["schemaTitle"] == "system.HTML"
    }  # fmt: skip
    assert makers == {"finish"}, "one page, drawn after all else"


def test_promote_and_hold_branch_on_the_decision(spec):
    conditions = [task["triggerPolicy"]["condition"] for task in tasks(spec).values() if "condition" in
                  task.get("triggerPolicy", {})]  # fmt: skip
    assert len(conditions) == 2
    assert all("decide-Output" in condition and "'promote'" in condition for condition in conditions)


def test_an_image_named_by_git_sha_is_in_every_task(tmp_path):
    out = tmp_path / "cluster.yaml"
    image = f"registry.example/kiwi:{SHA}"
    assert compile_yaml(out, KIWI_IMAGE=image).returncode == 0
    spec = next(document for document in yaml.safe_load_all(out.read_text()) if "root" in document)
    assert {it["container"]["image"] for it in spec["deploymentSpec"]["executors"].values()} == {image}


@pytest.mark.parametrize("moving", ["registry.example/kiwi", "registry.example/kiwi:latest", "registry:5000/kiwi:v1"])
def test_a_moving_tag_is_refused(tmp_path, moving):
    done = compile_yaml(tmp_path / "x.yaml", "--image", moving)
    assert done.returncode == 2
    assert "can move" in done.stderr
    assert not (tmp_path / "x.yaml").exists()


def test_a_cluster_profile_needs_an_image(tmp_path):
    profile = tmp_path / "cluster.yaml"
    profile.write_text("name: mine\ncluster: true\nretries: 4\n")
    done = compile_yaml(tmp_path / "x.yaml", "--profile", str(profile))
    assert done.returncode == 2
    assert "names no image" in done.stderr
    profile.write_text(f"name: mine\ncluster: true\nretries: 4\nimage: kiwi:{SHA}\n")
    done = compile_yaml(tmp_path / "x.yaml", "--profile", str(profile))
    assert done.returncode == 0, done.stderr
    assert "maxRetryCount: 4" in (tmp_path / "x.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "said"), [("nmae: x\n", "no setting 'nmae'"), ("name: x\ncluster: [\n", "profile")], ids=["unknown", "bad"]
)
def test_a_bad_profile_is_refused(tmp_path, text, said):
    profile = tmp_path / "bad.yaml"
    profile.write_text(text)
    done = compile_yaml(tmp_path / "x.yaml", "--profile", str(profile))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
