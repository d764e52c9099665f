"""What a profile says about a pool of several nodes, in the words of a TrainJob: the JSON in KIWI_TRAIN_JOB."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipelines.profile import POOL_LABEL, PRIORITY_LABEL, QUEUE_LABEL, SCRATCH, Pool, Profile, seconds

if TYPE_CHECKING:
    from kfp import dsl


def train_job_of(task: dsl.PipelineTask, profile: Profile, name: str) -> str:
    """kiwi.cluster.train_jobs.Placement as JSON: what `_use_pool` says of a task's pod, for the nodes of a TrainJob."""
    pool = profile.pools[name]
    settings = profile.task("train_stage")
    labels = {QUEUE_LABEL: profile.queue, PRIORITY_LABEL: pool.priority}
    said = {
        "runtime": profile.training_runtime,
        "nodes": pool.nodes,
        "processes": max(1, pool.accelerators),
        "image": task.container_spec.image,
        "resources": _resources(pool),
        "pod": _pod(profile, pool),
        "mounts": [mount for _, mount in _volumes(profile, pool)],
        "labels": {key: value for key, value in labels.items() if value},
        "pod_labels": {POOL_LABEL: name},
        "environment": {**profile.environment, **({"TMPDIR": SCRATCH} if pool.scratch else {})},
        "secrets": [
            {"name": variable, "secret": secret.name, "key": key, "optional": secret.optional}
            for secret in profile.secrets_of("train_stage")
            for key, variable in secret.keys.items()
        ],
        "deadline": seconds(settings.timeout) if settings.timeout else None,
    }
    return json.dumps(said, sort_keys=True)


def _resources(pool: Pool) -> dict[str, dict[str, str]]:
    gpus = {pool.accelerator: str(pool.accelerators)} if pool.accelerator and pool.accelerators else {}
    requests = {"cpu": pool.cpu, "memory": pool.memory}
    limits = {"cpu": pool.cpu_limit, "memory": pool.memory}
    return {
        "requests": {key: value for key, value in requests.items() if value} | gpus,
        "limits": {key: value for key, value in limits.items() if value} | gpus,
    }


def _pod(profile: Profile, pool: Pool) -> dict[str, Any]:
    """Kubernetes' pod specification, as far as a TrainJob may patch it."""
    pod: dict[str, Any] = {
        "serviceAccountName": profile.service_account,
        "nodeSelector": pool.selectors,
        "affinity": _affinity(pool),
        "tolerations": [taint.model_dump(exclude_none=True) for taint in pool.tolerations],
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
        "volumes": [volume for volume, _ in _volumes(profile, pool)],
    }
    if profile.security:
        user, group = profile.security.user, profile.security.group
        pod["securityContext"] = {
            "runAsNonRoot": True, "runAsUser": user, "runAsGroup": group, "seccompProfile": {"type": "RuntimeDefault"}
        }  # fmt: skip
        if pool.scratch_class:  # a new volume belongs to root
            pod["securityContext"] |= {"fsGroup": group, "fsGroupChangePolicy": "OnRootMismatch"}
    return {key: value for key, value in pod.items() if value}


def _affinity(pool: Pool) -> dict[str, Any]:
    expressions = [(wish.weight, wish.expression()) for wish in pool.affinity]
    musts = [it for weight, it in expressions if weight is None]
    wishes = [
        {"weight": weight, "preference": {"matchExpressions": [it]}} for weight, it in expressions if weight is not None
    ]
    node: dict[str, Any] = {}
    if musts:
        terms = [{"matchExpressions": musts}]  # several terms would be alternatives
        node["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    if wishes:
        node["preferredDuringSchedulingIgnoredDuringExecution"] = wishes
    return {"nodeAffinity": node} if node else {}


def _volumes(profile: Profile, pool: Pool) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each volume of a node's pod beside where it is mounted: work folders, shared memory, scratch."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    if profile.volume:
        claim = {"claimName": profile.volume.claim}
        found.append(_volume("work", profile.volume.path, persistentVolumeClaim=claim))
    if pool.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": pool.shared_memory}
        found.append(_volume("shared-memory", "/dev/shm", emptyDir=memory))
    if pool.scratch and not pool.scratch_class:
        found.append(_volume("scratch", SCRATCH, emptyDir={"sizeLimit": pool.scratch}))
    if pool.scratch and pool.scratch_class:
        claimed = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": pool.scratch}},
            "storageClassName": pool.scratch_class,
        }
        found.append(_volume("scratch", SCRATCH, ephemeral={"volumeClaimTemplate": {"spec": claimed}}))
    return found


def _volume(name: str, path: str, **source: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"name": name, **source}, {"name": name, "mountPath": path}
