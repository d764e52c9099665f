"""A TrainJob made or found again, its log shown, its end waited for; and deleted when its run has ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kiwi.cluster import attended
from kiwi.cluster.kubernetes import Conflict, Kubernetes, KubernetesError, NotFound, inside_cluster
from kiwi.cluster.train_jobs import (
    NODE,
    OURS,
    RUN_LABEL,
    JobState,
    Placement,
    TrainJobError,
    TrainJobFailed,
    job_name,
    path_of,
    state_of,
    train_job,
)
from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.workspace import Workspace

POLL_SECONDS = 5.0
DELETION_POLLS = 60
STARTS = 3  # times that a job which somebody deleted is made anew by one launcher
VISIBLE_SECONDS = 90  # a network file system may hide a new file from other nodes for a minute
LOG_TAIL = 20  # lines shown of a job that was running already
ATTEMPTS = 10  # of each request: about five minutes without the Kubernetes API are waited out

Say = Callable[[str], None]
Pause = Callable[[float], None]


def launch(
    configuration: RunConfiguration, stage: str, command: list[str], placement: Placement, finished: Callable[[], bool]
) -> JobState:
    """Trains a stage by a TrainJob, from inside a pod. Raises TrainJobError and KubernetesError."""
    if not inside_cluster():
        raise UsageError("KIWI_TRAIN_JOB is set, and this is no pod", "unset it: nodes are then processes of this host")
    api = Kubernetes.inside(ATTEMPTS)
    name = job_name(configuration, stage)
    sign = Workspace.of(configuration).locks / f"{name}.waiting"
    job = train_job(name, api.namespace, stage, attended.command(sign, command), placement)
    return follow(api, job, finished, attend=lambda: attended.touch(sign))


def follow(
    api: Kubernetes, body: dict[str, Any], finished: Callable[[], bool], say: Say | None = None,
    pause: Pause = time.sleep, *, attend: Callable[[], None] = lambda: None,
) -> JobState:  # fmt: skip
    """Makes the job or attaches to it, shows its log, and waits for its end; what ended well is deleted.

    A job that somebody deletes meanwhile (the exit task of another run that shared it) is made anew.

    Args:
        finished: whether the stage's result is on the work volume.
        attend: tells the nodes that somebody waits; called before there is a job, and then again and again.

    Raises:
        TrainJobFailed: with its reason. The job is left for people to look at, until the next try or the exit task.
        TrainJobError: it vanished again and again, or ended without a result.
    """
    say = say or _print
    name = body["metadata"]["name"]

    def wait(seconds: float) -> None:
        attend()
        pause(seconds)

    for _ in range(STARTS):
        attend()
        job, old = _started(api, body, say, wait)
        state = _ended(api, job, Log(api, name, say, LOG_TAIL if old else None), say, wait)
        if state is None:
            if finished():
                return JobState("complete", "", "by another run")
            say(f"TrainJob {name} was deleted meanwhile")
            continue
        if state.phase == "failed":
            raise TrainJobFailed(name, state)
        _wait_for_result(name, finished, wait)
        api.delete(path_of(api, name), job["metadata"]["uid"])
        return state
    raise TrainJobError(f"TrainJob {name} was deleted {STARTS} times", "who deletes it? look at the namespace's events")


def _started(api: Kubernetes, body: dict[str, Any], say: Say, pause: Pause) -> tuple[dict[str, Any], bool]:
    """The job, and whether it was there already; one that had ended is deleted first and made anew."""
    name = body["metadata"]["name"]
    for _ in range(DELETION_POLLS):
        job = api.find(path_of(api, name))
        if job is None:
            try:
                made = _created(api, body)
            except Conflict:  # another launcher was quicker
                continue
            say(f"TrainJob {name} made: {body['spec']['trainer']['numNodes']} nodes")
            return made, False
        state = state_of(job)
        if not state.over and not job["metadata"].get("deletionTimestamp"):
            say(f"TrainJob {name} is there already ({state}): attached")
            return job, True
        if not job["metadata"].get("deletionTimestamp"):
            say(f"TrainJob {name} of an earlier try had ended ({state}): made anew")
            api.delete(path_of(api, name), job["metadata"]["uid"])
        pause(POLL_SECONDS)
    raise TrainJobError(f"TrainJob {name} of an earlier try does not go away", f"kubectl describe trainjob {name}")


def _created(api: Kubernetes, body: dict[str, Any]) -> dict[str, Any]:
    try:
        return api.create(path_of(api), body)
    except NotFound as error:
        remedy = "install Kubeflow Trainer 2.3 (docs/cluster.md), or set `nodes: 1` in the profile's training pool"
        raise TrainJobError(f"this cluster knows no TrainJobs ({error.message})", remedy) from None


def _ended(api: Kubernetes, job: dict[str, Any], log: Log, say: Say, pause: Pause) -> JobState | None:
    """The state that the job ended with; None where it is gone."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    before: JobState | None = None
    while True:
        found = api.find(path_of(api, name))
        if found is None or found["metadata"]["uid"] != uid:
            return None
        state = state_of(found)
        if state != before:
            say(f"TrainJob {name}: {state}")
            before = state
        if state.phase != "waiting":
            log.show()
        if state.over:
            return state
        pause(POLL_SECONDS)


def _wait_for_result(name: str, finished: Callable[[], bool], pause: Pause) -> None:
    for _ in range(int(VISIBLE_SECONDS / POLL_SECONDS)):
        if finished():
            return
        pause(POLL_SECONDS)
    raise TrainJobError(
        f"TrainJob {name} is complete, and left no result on the work volume",
        "do its pods mount the same claim as this task (`volume:` in the profile)?",
    )


@dataclass
class Log:
    """The log of the first node, of which rank 0 is one process, shown line by line as it grows.

    `tail` lines are shown of what was there before; None: all. A log that cannot be read is said once; training
    does not depend on it.
    """

    api: Kubernetes
    name: str
    say: Say
    tail: int | None = None
    _seen: str = ""
    _complaint: str = ""

    def show(self) -> None:
        """Shows what is new."""
        try:
            for pod in self._pods():
                self._show(pod)
        except KubernetesError as error:
            if error.message != self._complaint:
                self.say(f"the log cannot be read: {error}")
                self._complaint = error.message

    def _pods(self) -> list[str]:
        """The newest pod of node 0; a job that was restarted has had several."""
        selector = f"jobset.sigs.k8s.io/jobset-name={self.name},batch.kubernetes.io/job-completion-index=0"
        listed = self.api.get(f"/api/v1/namespaces/{self.api.namespace}/pods", {"labelSelector": selector})
        pods = sorted(listed.get("items") or [], key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
        return [str(pod["metadata"]["name"]) for pod in pods[-1:]]

    def _show(self, pod: str) -> None:
        lines = self.api.log(pod, NODE, since=self._seen or None, tail=None if self._seen else self.tail)
        before = _moment(self._seen)
        for line in lines:
            moment, _, text = line.partition(" ")
            if _moment(moment) > before:
                self.say(text)
                self._seen = moment


def _moment(stamp: str) -> tuple[str, str]:
    """An RFC 3339 time in UTC that compares with others, however many digits its fraction has."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return whole, fraction.ljust(9, "0")


def stop_jobs(say: Say | None = None) -> list[str]:
    """For the exit task: deletes what is left of this run's TrainJobs, after success, failure and cancellation alike.

    Does nothing where the profile trains on one node. Raises KubernetesError.
    """
    run = os.environ.get("KIWI_RUN_ID")
    if not (os.environ.get("KIWI_TRAIN_JOB") and run and inside_cluster()):
        return []
    return stop_jobs_of(Kubernetes.inside(), run, say or _print)


def stop_jobs_of(api: Kubernetes, run: str, say: Say) -> list[str]:
    """Deletes the TrainJobs that a run made; returns their names."""
    try:
        jobs = api.get(path_of(api), {"labelSelector": f"{OURS},{RUN_LABEL}={run}"}).get("items") or []
    except NotFound:  # no Kubeflow Trainer, so no jobs
        return []
    names = []
    for job in jobs:
        name = job["metadata"]["name"]
        api.delete(path_of(api, name), job["metadata"]["uid"])
        say(f"TrainJob {name} deleted ({state_of(job).phase})")
        names.append(name)
    return names


def _print(text: str) -> None:
    print(text, flush=True)
