"""A TrainJob is made once, found again by whoever is tried again, followed to its end, and never left behind.

The Kubernetes API is a fake that checks each TrainJob against Kubeflow Trainer's schema (fake_kubernetes.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kiwi.cluster import following_jobs, launching
from kiwi.cluster.following_jobs import follow, stop_jobs, stop_jobs_of
from kiwi.cluster.kubernetes import Kubernetes, KubernetesError
from kiwi.cluster.launching import PATIENT
from kiwi.cluster.train_jobs import (
    JobState,
    Placement,
    TrainJobError,
    TrainJobFailed,
    job_name,
    state_of,
    train_job,
)
from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.tracking import silent

COMMAND = [
    "python",
    "-m",
    "torch.distributed.run",
    *PATIENT,
    "-m",
    "kiwi",
    "train",
    "stage1",
    "--workdir",
    "/work/demo",
]
NAME = "kiwi-stage1-0123456789ab"
PLACEMENT = Placement(
    runtime="kiwi-training", nodes=2, processes=8, image="registry.example/kiwi@sha256:0",
    resources={"requests": {"cpu": "96", "nvidia.com/gpu": "8"}, "limits": {"nvidia.com/gpu": "8"}},
    pod={"nodeSelector": {"kiwi.dev/pool": "training"}}, mounts=[{"name": "work", "mountPath": "/work"}],
    labels={"kueue.x-k8s.io/queue-name": "kiwi"}, environment={"HF_HOME": "/work/models"},
    secrets=[{"name": "HF_TOKEN", "secret": "kiwi-hugging-face", "key": "token", "optional": False}], deadline=3600,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_run(monkeypatch):
    monkeypatch.setenv("KIWI_RUN_ID", "run-1")


class Controller:
    """Plays Kubeflow Trainer's controller: one entry of `script` at each wait of the launcher."""

    def __init__(self, *script):
        self.script, self.waits = list(script), 0

    def __call__(self, seconds):
        self.waits += 1
        assert self.waits < 200, "the launcher waits for ever"
        if self.script:
            self.script.pop(0)()


def body():
    return train_job(NAME, "kiwi", "stage1", COMMAND, PLACEMENT)


def followed(kubernetes, *script, finished=lambda: True):
    said = []
    return follow(kubernetes, body(), finished, said.append, Controller(*script)), said


def ends(fake, condition="Complete", reason="JobsCompleted", message="all jobs are done"):
    return lambda: fake.set(NAME, condition, reason, message)


def test_a_job_is_made_its_log_shown_and_it_is_deleted_when_it_ended_well(kubernetes, fake_kubernetes):
    def runs():
        fake_kubernetes.set(NAME, ready=1)
        fake_kubernetes.pod(NAME, "node-1", "2026-01-01T00:00:00.5Z not this one", node=1)
        fake_kubernetes.pod(NAME, "node-0", "2026-01-01T00:00:01.000000001Z step 1")

    def goes_on():
        fake_kubernetes.pods["node-0"][1].append("2026-01-01T00:00:01.000000002Z step 2")

    state, said = followed(kubernetes, runs, goes_on, ends(fake_kubernetes))
    assert state == JobState("complete", "JobsCompleted", "all jobs are done")
    assert [line for line in said if "step" in line or "this one" in line] == ["step 1", "step 2"], "each line once"
    assert fake_kubernetes.jobs == {}
    assert len([asked for asked in fake_kubernetes.changes() if asked.startswith("POST")]) == 1


def test_a_launcher_that_is_tried_again_attaches_to_the_job_that_runs(kubernetes, fake_kubernetes):
    kubernetes.create("/apis/trainer.kubeflow.org/v1alpha1/namespaces/kiwi/trainjobs", body())
    fake_kubernetes.set(NAME, ready=1)
    fake_kubernetes.pod(NAME, "node-0", *(f"2026-01-01T00:00:{second:02d}Z step {second}" for second in range(50)))
    fake_kubernetes.asked.clear()
    state, said = followed(kubernetes, ends(fake_kubernetes))
    assert state.phase == "complete"
    assert not [asked for asked in fake_kubernetes.changes() if asked.startswith("POST")]
    assert "attached" in said[0]
    shown = [line for line in said if line.startswith("step")]
    assert shown == [f"step {second}" for second in range(30, 50)], "only the end of what was said before"


def test_of_two_launchers_at_once_the_second_attaches(kubernetes, fake_kubernetes, monkeypatch):
    find, looked = Kubernetes.find, []

    def find_too_early(self, path):
        looked.append(path)
        if len(looked) == 1:  # nothing there yet; then the other launcher makes it
            fake_kubernetes.answer("POST", path.rsplit("/", 1)[0], {}, body())
            return None
        return find(self, path)

    monkeypatch.setattr(Kubernetes, "find", find_too_early)
    state, said = followed(kubernetes, ends(fake_kubernetes))
    assert state.phase == "complete"
    assert "attached" in said[0]


def test_a_job_that_failed_fails_the_task_with_its_reason_and_stays_to_be_looked_at(kubernetes, fake_kubernetes):
    with pytest.raises(TrainJobFailed, match="failed: FailedJobs: node 1 ended with 1") as caught:
        followed(kubernetes, ends(fake_kubernetes, "Failed", "FailedJobs", "node 1 ended with 1"))
    assert caught.value.state == JobState("failed", "FailedJobs", "node 1 ended with 1")
    assert "newest checkpoint" in caught.value.remedy
    assert NAME in fake_kubernetes.jobs


def test_a_deadline_is_named_with_the_setting_to_raise(kubernetes, fake_kubernetes):
    with pytest.raises(TrainJobFailed) as caught:
        followed(kubernetes, ends(fake_kubernetes, "Failed", "DeadlineExceeded", "too long"))
    assert "`timeout:` of train_stage" in caught.value.remedy


@pytest.mark.parametrize("ended", ["Failed", "Complete"])
def test_a_job_of_an_earlier_try_that_had_ended_is_made_anew(kubernetes, fake_kubernetes, ended):
    kubernetes.create("/apis/trainer.kubeflow.org/v1alpha1/namespaces/kiwi/trainjobs", body())
    fake_kubernetes.set(NAME, ended, "x")
    old = fake_kubernetes.jobs[NAME]["metadata"]["uid"]
    seen = []

    def notes():
        seen.append(fake_kubernetes.jobs.get(NAME, {}).get("metadata", {}).get("uid"))

    state, _ = followed(kubernetes, notes, notes, ends(fake_kubernetes))
    assert state.phase == "complete"
    assert old not in seen
    assert seen[-1] is not None


def test_a_job_that_does_not_go_away_is_said(kubernetes, fake_kubernetes):
    kubernetes.create("/apis/trainer.kubeflow.org/v1alpha1/namespaces/kiwi/trainjobs", body())
    fake_kubernetes.set(NAME, "Failed")
    fake_kubernetes.keep = True
    with pytest.raises(TrainJobError, match="does not go away"):
        followed(kubernetes)
    assert len([asked for asked in fake_kubernetes.changes() if asked.startswith("DELETE")]) == 1


def test_a_job_that_another_runs_exit_task_deleted_is_made_anew(kubernetes, fake_kubernetes):
    state, said = followed(kubernetes, lambda: fake_kubernetes.jobs.clear(), ends(fake_kubernetes),
                           finished=lambda: bool(fake_kubernetes.jobs))  # fmt: skip
    assert state.phase == "complete"
    assert sum("made" in line for line in said) == 2
    with pytest.raises(TrainJobError, match="deleted 3 times"):
        followed(kubernetes, *[fake_kubernetes.jobs.clear] * 3, finished=lambda: False)


def test_a_complete_job_without_a_result_is_no_success(kubernetes, fake_kubernetes):
    with pytest.raises(TrainJobError, match="left no result on the work volume"):
        followed(kubernetes, ends(fake_kubernetes), finished=lambda: False)


def test_a_result_that_a_network_volume_shows_late_is_waited_for(kubernetes, fake_kubernetes):
    looks = iter([False, False, True])
    state, _ = followed(kubernetes, ends(fake_kubernetes), finished=lambda: next(looks))
    assert state.phase == "complete"


def test_a_log_that_may_not_be_read_is_said_once_and_training_goes_on(kubernetes, fake_kubernetes, monkeypatch):
    def refused(self, *said, **more):
        raise KubernetesError("the pod's service account may not read the log")

    monkeypatch.setattr(Kubernetes, "log", refused)
    fake_kubernetes.pod(NAME, "node-0", "2026-01-01T00:00:01Z step 1")
    state, said = followed(kubernetes, lambda: fake_kubernetes.set(NAME, ready=1), lambda: None, ends(fake_kubernetes))
    assert state.phase == "complete"
    assert sum("cannot be read" in line for line in said) == 1


def test_a_restarted_node_is_followed_in_its_newest_pod(kubernetes, fake_kubernetes):
    def restarts():
        fake_kubernetes.pod(NAME, "again", "2026-01-01T00:02:00Z step 1 again", created="2026-01-01T00:01:59Z")

    fake_kubernetes.pod(NAME, "first", "2026-01-01T00:00:01Z step 1")
    _, said = followed(kubernetes, lambda: None, restarts, ends(fake_kubernetes))
    assert [line for line in said if line.startswith("step")] == ["step 1", "step 1 again"]


def test_a_cluster_without_kubeflow_trainer_is_told_so(kubernetes, fake_kubernetes):
    fake_kubernetes.trainer = False
    with pytest.raises(TrainJobError, match="knows no TrainJobs") as caught:
        followed(kubernetes)
    assert "install Kubeflow Trainer" in caught.value.remedy


def test_the_exit_task_deletes_the_jobs_of_its_run_and_no_others(kubernetes, fake_kubernetes):
    for number, run in enumerate(("run-1", "run-1", "run-2")):
        labels = {"app.kubernetes.io/managed-by": "kiwi", "kiwi.dev/run": run}
        fake_kubernetes.jobs[f"job-{number}"] = {"metadata": {"name": f"job-{number}", "uid": "u", "labels": labels}}
    fake_kubernetes.jobs["theirs"] = {"metadata": {"name": "theirs", "uid": "u", "labels": {"kiwi.dev/run": "run-1"}}}
    assert stop_jobs_of(kubernetes, "run-1", lambda line: None) == ["job-0", "job-1"]
    assert set(fake_kubernetes.jobs) == {"job-2", "theirs"}
    fake_kubernetes.trainer = False
    assert stop_jobs_of(kubernetes, "run-1", lambda line: None) == []


def test_the_exit_task_of_a_run_on_one_node_asks_nobody(monkeypatch):
    monkeypatch.delenv("KIWI_TRAIN_JOB", raising=False)
    monkeypatch.setattr(following_jobs, "inside_cluster", lambda: True)
    assert stop_jobs() == []


def test_the_exit_component_stops_what_is_left_also_when_closing_fails(configuration, monkeypatch):
    from types import SimpleNamespace

    from components.finish.component import finish

    stopped = []
    monkeypatch.setattr(following_jobs, "stop_jobs", lambda: stopped.append("stopped"))

    def failing(*said, **more):
        raise RuntimeError("the report could not be drawn")

    monkeypatch.setattr("kiwi.operations.close_and_announce", failing)
    said = {"status": SimpleNamespace(state="CANCELLED"), "page": SimpleNamespace(path="")}
    with pytest.raises(RuntimeError, match="could not be drawn"):
        finish.python_func(config=configuration.canonical(), **said)
    assert stopped == ["stopped"]


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        (None, "starting"),
        ({"conditions": [{"type": "Suspended", "status": "True", "reason": "Suspended", "message": ""}]}, "waiting"),
        ({"conditions": [{"type": "Suspended", "status": "False"}], "jobsStatus": [{"ready": 0}]}, "starting"),
        ({"conditions": [{"type": "Suspended", "status": "False"}], "jobsStatus": [{"ready": 1}]}, "running"),
        ({"conditions": [{"type": "Complete", "status": "True"}]}, "complete"),
        ({"conditions": [{"type": "Complete", "status": "False"}, {"type": "Failed", "status": "True"}]}, "failed"),
    ],
)
def test_a_status_is_read_as_trainer_writes_it(status, phase):
    assert state_of({"status": status} if status else {}).phase == phase


def test_a_job_holds_no_secrets_value_and_fits_trainers_schema(monkeypatch, fake_kubernetes):
    monkeypatch.setenv("HF_TOKEN", "canary")
    job = body()
    assert "canary" not in json.dumps(job)
    assert {"name": "KIWI_RUN_ID", "value": "run-1"} in job["spec"]["trainer"]["env"]
    assert fake_kubernetes.answer("POST", "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kiwi/trainjobs", {}, job)[
        0
    ] == 201  # fmt: skip
    job["spec"]["trainer"]["numNode"] = 2
    job["spec"]["trainer"]["env"].append({"name": "PET_NNODES", "value": "2"})
    status, said = fake_kubernetes.answer(
        "POST", "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kiwi/trainjobs", {}, job
    )
    assert status == 422, "without this the schema check would prove nothing"
    assert "numNode" in said["message"]
    assert "PET_NNODES" in said["message"]


def test_a_name_says_the_stage_and_changes_with_what_is_learned_and_where(configuration, monkeypatch):
    monkeypatch.setattr("kiwi.training.results.stage_key", lambda configuration, stage: str(configuration.seed))
    name = job_name(configuration, "stage1")
    assert name == job_name(configuration, "stage1")
    assert name.startswith("kiwi-stage1-")
    others = [configuration.model_copy(update=change) for change in ({"seed": 7}, {"workspace": "/work/other"})]
    assert len({name, *(job_name(other, "stage1") for other in others)}) == 3
    assert len(job_name(configuration, "Stage 2a: high resolution of the released recipe")) <= 40


@pytest.mark.parametrize("said", ["{", "{}", '{"nodes": 2}', "[]"])
def test_a_placement_that_is_none_is_refused(monkeypatch, said):
    monkeypatch.setenv("KIWI_TRAIN_JOB", said)
    with pytest.raises(UsageError, match="KIWI_TRAIN_JOB"):
        Placement.told()


def test_a_stage_on_several_nodes_is_launched_and_its_result_read(configuration, monkeypatch):
    launched, found = [], {}

    def launch(configuration: RunConfiguration, stage, command, placement, finished):
        launched.append((stage, command, placement.nodes, finished()))
        found["stage1"] = {"steps": 1}

    monkeypatch.setattr(launching, "launch", launch)
    monkeypatch.setattr("kiwi.training.results.finished_stage", lambda configuration, stage: found.get(stage))
    monkeypatch.setattr(launching, "train_stage", lambda configuration, stage, task: found[stage])
    monkeypatch.setenv("KIWI_NODES", "2")
    monkeypatch.setenv("KIWI_PROCESSES", "8")
    monkeypatch.setenv("KIWI_TRAIN_JOB", json.dumps(vars(PLACEMENT)))
    for _ in range(2):
        assert launching.train(configuration, "stage1", silent()) == {"steps": 1}
    ((stage, command, nodes, finished),) = launched
    assert (stage, nodes, finished) == ("stage1", 2, False)
    assert command == [*COMMAND[:-1], configuration.workspace]


@pytest.mark.parametrize("said", ["two", "0", "-1", ""])
def test_a_number_of_nodes_that_is_none_is_refused(configuration, monkeypatch, said):
    monkeypatch.setenv("KIWI_NODES", said)
    with pytest.raises(UsageError, match="KIWI_NODES"):
        launching.train(configuration, "stage1", silent())


def test_a_launcher_outside_a_pod_says_how_to_train_on_this_host(configuration, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UsageError, match="this is no pod") as caught:
        following_jobs.launch(configuration, "stage1", COMMAND, PLACEMENT, lambda: False)
    assert "processes of this host" in caught.value.remedy


def test_a_launcher_in_a_pod_uses_the_pods_own_account_and_namespace(
    configuration, fake_kubernetes, monkeypatch, tmp_path, capsys
):
    """All of it, from the environment of a pod to the job that is gone again; only the address is the fake's."""
    from dataclasses import replace

    from kiwi.cluster import kubernetes as api

    for name, text in {"token": "pods-token", "namespace": "kiwi\n", "ca.crt": ""}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(api, "ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    inside = Kubernetes.inside()
    assert (inside.url, inside.namespace, inside.authority) == ("https://[fd00::1]:443", "kiwi", f"{tmp_path}/ca.crt")
    monkeypatch.setattr(Kubernetes, "inside", lambda attempts=3: replace(inside, url=fake_kubernetes.url))
    monkeypatch.setattr("kiwi.training.results.stage_key", lambda configuration, stage: "a-key")
    monkeypatch.setenv("KIWI_RUN_ID", "run-1")
    monkeypatch.setenv("KIWI_TRAIN_JOB", "{}")
    name = job_name(configuration, "stage1")

    def stops():  # the exit task of a cancelled run, while the launcher waits
        _, _, _, _, file, *inner = ["", *fake_kubernetes.jobs[name]["spec"]["trainer"]["command"]]
        assert inner == COMMAND
        assert Path(file).is_file(), "the nodes see that somebody waits"
        assert stop_jobs(lambda line: None) == [name]

    monkeypatch.setattr(following_jobs.follow, "__defaults__", (None, Controller(stops)))
    state = following_jobs.launch(configuration, "stage1", COMMAND, PLACEMENT, lambda: name not in fake_kubernetes.jobs)
    assert (state.phase, state.message) == ("complete", "by another run")
    assert set(fake_kubernetes.tokens) == {"Bearer pods-token"}
    assert f"TrainJob {name} made: 2 nodes" in capsys.readouterr().out
