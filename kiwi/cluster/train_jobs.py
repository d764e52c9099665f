"""A stage on several nodes as a TrainJob of Kubeflow Trainer 2.3: its name, its object, and what its status means.

The job's name is a hash of the work folder and of all that the stage learns from. A launcher that is tried again
therefore finds the job of the try before (following_jobs.py), and the checkpoints lie where any try looks for them.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from kiwi.cluster.kubernetes import Kubernetes
from kiwi.configuration import RunConfiguration, digest
from kiwi.errors import KiwiError, UsageError

TRAINER = "trainer.kubeflow.org"
VERSION = "v1alpha1"  # of Kubeflow Trainer 2.3, which docs/cluster.md names
NODE = "node"  # Trainer's name of the replicated job and of its container
RUN_LABEL, STAGE_LABEL = "kiwi.dev/run", "kiwi.dev/stage"
OURS = "app.kubernetes.io/managed-by=kiwi"

Phase = Literal["waiting", "starting", "running", "complete", "failed"]


@dataclass(frozen=True)
class JobState:
    """Where a TrainJob stands: `waiting` in the queue, `starting`, `running`, `complete` or `failed`; and why."""

    phase: Phase
    reason: str = ""
    message: str = ""

    @property
    def over(self) -> bool:
        return self.phase in ("complete", "failed")

    def __str__(self) -> str:
        return ": ".join(part for part in (self.phase, self.reason, self.message) if part)


class TrainJobError(KiwiError):
    """Training on several nodes did not come to its end."""


class TrainJobFailed(TrainJobError):  # noqa: N818
    """The TrainJob failed; `state` says why."""

    def __init__(self, name: str, state: JobState) -> None:
        deadline = state.reason == "DeadlineExceeded"
        remedy = "raise `timeout:` of train_stage in the profile" if deadline else "its last lines stand above"
        super().__init__(f"TrainJob {name}: {state}", f"{remedy}; the next try resumes from the newest checkpoint")
        self.state = state


@dataclass(frozen=True)
class Placement:
    """What the profile says about the nodes, as pipelines/placing.py writes it: in Kubernetes' words, no secret.

    Attributes:
        pod: a patch of the pod's specification: selectors, tolerations, volumes and the like.
        mounts: where the container mounts these volumes.
        secrets: variables from secrets, each {"name", "secret", "key", "optional"}.
        deadline: seconds after which Kubernetes ends the job, also one that everybody has forgotten.
    """

    runtime: str
    nodes: int
    processes: int
    image: str
    resources: dict[str, dict[str, str]]
    pod: dict[str, Any]
    mounts: list[dict[str, Any]]
    labels: dict[str, str] = field(default_factory=dict)
    pod_labels: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    secrets: list[dict[str, Any]] = field(default_factory=list)
    deadline: int | None = None

    @classmethod
    def told(cls) -> Placement | None:
        """What KIWI_TRAIN_JOB says; None where it is not set. Raises UsageError for what is no placement."""
        said = os.environ.get("KIWI_TRAIN_JOB")
        if not said:
            return None
        try:
            return cls(**json.loads(said))
        except (ValueError, TypeError) as error:
            raise UsageError(f"KIWI_TRAIN_JOB is no placement: {error}", "compile the pipeline anew") from None


def job_name(configuration: RunConfiguration, stage: str) -> str:
    """Deterministic: the same stage of the same configuration in the same work folder is the same job."""
    from kiwi.training.results import stage_key

    word = re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-")[:20] or "stage"
    return f"kiwi-{word}-{digest(configuration.workspace, stage_key(configuration, stage))[:12]}"


def train_job(name: str, namespace: str, stage: str, command: list[str], placement: Placement) -> dict[str, Any]:
    """The TrainJob of a stage, for Kubeflow Trainer 2.3."""
    run = os.environ.get("KIWI_RUN_ID", "manual")
    labels = {"app.kubernetes.io/managed-by": "kiwi", RUN_LABEL: run, STAGE_LABEL: stage, **placement.labels}
    trainer = {
        "image": placement.image,
        "command": command,
        "env": _environment(placement, run),
        "numNodes": placement.nodes,
        "numProcPerNode": placement.processes,
        "resourcesPerNode": placement.resources,
    }
    pod = {**placement.pod, "containers": [{"name": NODE, "volumeMounts": placement.mounts}]}
    job = {"template": {"spec": {"template": {"metadata": {"labels": placement.pod_labels}, "spec": pod}}}}
    patch = {"template": {"spec": {"replicatedJobs": [{"name": NODE, **job}]}}}
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": TRAINER, "kind": "TrainingRuntime", "name": placement.runtime},
        "trainer": trainer,
        "runtimePatches": [{"manager": "kiwi.dev/launcher", "trainingRuntimeSpec": patch}],
    }
    if placement.deadline:
        spec["activeDeadlineSeconds"] = placement.deadline
    return {
        "apiVersion": f"{TRAINER}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": spec,
    }


def _environment(placement: Placement, run: str) -> list[dict[str, Any]]:
    plain = [{"name": name, "value": value} for name, value in placement.environment.items()]
    secret = [
        {
            "name": one["name"],
            "valueFrom": {
                "secretKeyRef": {"name": one["secret"], "key": one["key"], "optional": one.get("optional", False)}
            },
        }
        for one in placement.secrets
    ]
    return [*plain, {"name": "KIWI_RUN_ID", "value": run}, *secret]


def state_of(job: dict[str, Any]) -> JobState:
    """A TrainJob's status as the API gives it, in our words."""
    status = job.get("status") or {}
    true = {one["type"]: one for one in status.get("conditions") or [] if one.get("status") == "True"}
    phases: tuple[tuple[str, Phase], ...] = (("Failed", "failed"), ("Complete", "complete"), ("Suspended", "waiting"))
    for kind, phase in phases:
        if kind in true:
            return JobState(phase, true[kind].get("reason", ""), " ".join(true[kind].get("message", "").split()))
    busy = any(one.get("ready") or one.get("succeeded") for one in status.get("jobsStatus") or [])
    return JobState("running" if busy else "starting")


def path_of(api: Kubernetes, name: str | None = None) -> str:
    listed = f"/apis/{TRAINER}/{VERSION}/namespaces/{api.namespace}/trainjobs"
    return f"{listed}/{name}" if name else listed
