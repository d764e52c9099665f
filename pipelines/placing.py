"""Puts a task where the profile says: pool, queue, volumes, secrets by name, timeout. A laptop's profile says none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kiwi.cluster.submitting import Place
from kiwi.errors import UsageError
from pipelines.profile import (
    POOL_LABEL,
    PRIORITY_LABEL,
    QUEUE_LABEL,
    SCRATCH,
    Pool,
    Profile,
    read_profile,
    seconds,
)
from pipelines.training_nodes import train_job_of

if TYPE_CHECKING:
    from kfp import dsl


def place(task: dsl.PipelineTask, profile: Profile) -> None:
    """Everything of a profile that concerns one task, but for its retries."""
    component = task.component_spec.name.replace("-", "_")
    settings = profile.task(component)
    set_environment(task, profile.environment)
    if not profile.cluster:
        return
    from kfp import kubernetes

    pool = profile.pools[settings.pool] if settings.pool else None
    if settings.pool and pool and pool.nodes == 1:
        _use_pool(task, settings.pool, pool)
    elif settings.pool and pool:  # the task launches a TrainJob on that pool, from a pod in another
        nodes, processes = str(pool.nodes), str(max(1, pool.accelerators))
        placement = train_job_of(task, profile, settings.pool)
        set_environment(task, {"KIWI_NODES": nodes, "KIWI_PROCESSES": processes, "KIWI_TRAIN_JOB": placement})
        if profile.pool:
            _use_pool(task, profile.pool, profile.pools[profile.pool])
    if settings.timeout:
        kubernetes.set_timeout(task, seconds(settings.timeout))
    if profile.queue:
        kubernetes.add_pod_label(task, QUEUE_LABEL, profile.queue)
    if profile.volume:
        kubernetes.mount_pvc(task, pvc_name=profile.volume.claim, mount_path=profile.volume.path)
    if profile.security:
        user, group = profile.security.user, profile.security.group
        kubernetes.set_security_context(task, run_as_user=user, run_as_group=group, run_as_non_root=True)
    if profile.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(profile.image_pull_secrets))
    for secret in profile.secrets_of(component):
        # Optional for the task that looks for what is missing: its pod must start without them to say so.
        optional = secret.optional or component == "prerequisites"
        kubernetes.use_secret_as_env(task, secret.name, dict(secret.keys), optional=optional)
    # By field path, since a run's id as an argument would change from run to run what is otherwise the same task.
    kubernetes.use_field_path_as_env(task, "KIWI_RUN_ID", "metadata.labels['pipeline/runid']")
    if component == "prerequisites":
        set_environment(task, {"KIWI_NEEDS": needs(profile)})
    if component == "finish" and _has_nodes(profile):
        set_environment(task, {"KIWI_TRAIN_JOB": "{}"})  # the exit task deletes what is left of them


def set_environment(task: dsl.PipelineTask, variables: Mapping[str, str]) -> None:
    """What `task.set_env_variable` does for each, which takes 0.1 s: kfp looks up its caller's name for a message."""
    task.container_spec.env = {**(task.container_spec.env or {}), **variables}


def needs(profile: Profile) -> str:
    """What the prerequisites task looks for, as JSON: names and amounts, never a secret's value."""
    secrets: dict[str, list[str]] = {}
    for secret in profile.secrets:
        if not secret.optional:
            secrets.setdefault(secret.name, []).extend(secret.keys.values())
    largest: dict[str, int] = {}
    for pool in profile.pools.values():
        if pool.accelerator:
            largest[pool.accelerator] = max(largest.get(pool.accelerator, 0), pool.accelerators * pool.nodes)
    needed = {
        "free_gigabytes": profile.free_gigabytes,
        "secrets": secrets,
        "accelerators": largest,
        "queue": profile.queue,
        "namespace": profile.namespace,
        "training_runtime": profile.training_runtime if _has_nodes(profile) else None,
    }
    return json.dumps(needed, sort_keys=True)


def _use_pool(task: dsl.PipelineTask, name: str, pool: Pool) -> None:
    from kfp import kubernetes

    kubernetes.add_pod_label(task, POOL_LABEL, name)
    if pool.priority:
        kubernetes.add_pod_label(task, PRIORITY_LABEL, pool.priority)
    if pool.cpu:
        task.set_cpu_request(pool.cpu)
    if pool.cpu_limit:
        task.set_cpu_limit(pool.cpu_limit)
    if pool.memory:
        task.set_memory_request(pool.memory)
        task.set_memory_limit(pool.memory)
    if pool.accelerator and pool.accelerators:
        task.set_accelerator_type(pool.accelerator)
        task.set_accelerator_limit(pool.accelerators)
        set_environment(task, {"KIWI_PROCESSES": str(pool.accelerators)})
    for key, value in pool.selectors.items():
        kubernetes.add_node_selector(task, key, value)
    musts = [wish.expression() for wish in pool.affinity if wish.weight is None]
    if musts:  # in one term: several would be alternatives
        kubernetes.add_node_affinity(task, match_expressions=musts)
    for wish in pool.affinity:
        if wish.weight is not None:
            kubernetes.add_node_affinity(task, match_expressions=[wish.expression()], weight=wish.weight)
    for taint in pool.tolerations:
        kubernetes.add_toleration(task, key=taint.key, operator=taint.operator, value=taint.value, effect=taint.effect)
    if pool.shared_memory:
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=pool.shared_memory)
    if pool.scratch and pool.scratch_class:
        kubernetes.add_ephemeral_volume(
            task, "scratch", SCRATCH, ["ReadWriteOnce"], pool.scratch, storage_class_name=pool.scratch_class
        )
    elif pool.scratch:
        kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit=pool.scratch)
    if pool.scratch:
        set_environment(task, {"TMPDIR": SCRATCH})


def _has_nodes(profile: Profile) -> bool:
    return any(pool.nodes > 1 for pool in profile.pools.values())


def place_of(name: str) -> Place:
    """What of a profile concerns a run as a whole. Raises UsageError where it is none of a cluster's."""
    chosen = read_profile(name, with_image=False)
    if not chosen.namespace:
        raise UsageError(f"profile {name!r} names no namespace: it is no cluster's", "use --profile dev or prod")
    return Place(chosen.namespace, chosen.service_account, chosen.pipeline_root)
