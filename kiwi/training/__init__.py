"""The curriculum: latents computed once, then stage after stage. torch is imported only where there is work to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiwi.training.results import checkpoint_folder, finished_cache, finished_stage

if TYPE_CHECKING:
    from kiwi.configuration import RunConfiguration
    from kiwi.tracking import TaskRun

__all__ = ["cache_latents", "checkpoint_folder", "train_stage"]


def cache_latents(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """The latent cache of the published dataset: the finished one, or `kiwi.training.latents.compute_cache`."""
    found = finished_cache(configuration)
    if found is not None:
        task.note("reused")
        return found
    from kiwi.training.latents import compute_cache

    computed = compute_cache(configuration, task)
    assert computed is not None  # one process computes all chunks
    return computed


def train_stage(configuration: RunConfiguration, name: str, task: TaskRun) -> dict[str, Any]:
    """One stage's result: the finished one, or `kiwi.training.curriculum.run_stage`."""
    found = finished_stage(configuration, name)
    if found is not None:
        task.note("reused")
        return found
    from kiwi.training.curriculum import run_stage

    return run_stage(configuration, name, task)
