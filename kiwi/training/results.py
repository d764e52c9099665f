"""Where latents and checkpoints lie and what finished ones say: keys and look-ups that need no torch.

A retried, resumed or repeated task asks here first, so that finding finished work costs no import.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, cast

from kiwi.configuration import RunConfiguration, digest
from kiwi.training.views import View, view_of, views
from kiwi.workspace import Workspace, published, read_json, write_json

CACHE_VERSION = 2
WINDOWS = 4  # windows taken of a clip that is longer than the model's length


def cache_key(configuration: RunConfiguration, view: View | None = None) -> str:
    """Names the latent cache of the published dataset under a model, at the sizes of a view (None: the first's)."""
    return digest(
        CACHE_VERSION, published(configuration)["digest"], configuration.model.model_dump(mode="json"), WINDOWS,
        *(view or views(configuration)[0]).own(configuration),
    )  # fmt: skip


def cache_folder(configuration: RunConfiguration, view: View | None = None) -> Path:
    return Workspace.of(configuration).latents(cache_key(configuration, view))


def finished_cache(configuration: RunConfiguration) -> dict[str, Any] | None:
    """What all caches of the curriculum hold; None where one of them is not finished.

    Returns:
        {"key", "path", "samples": {kind: n}, "bytes"} of the first stage's cache, and the same of each in "views".
    """
    each = [_finished(configuration, view) for view in views(configuration)]
    done = [cache for cache in each if cache is not None]
    return {**done[0], "views": done} if len(done) == len(each) else None


def _finished(configuration: RunConfiguration, view: View) -> dict[str, Any] | None:
    folder = cache_folder(configuration, view)
    if not (folder / "cache.json").is_file():
        return None
    cache = read_json(folder / "cache.json")
    samples: dict[str, int] = defaultdict(int)
    for bucket in cache["buckets"]:
        samples[bucket["kind"]] += bucket["samples"]
    size = sum(bucket["bytes"] for bucket in cache["buckets"])
    return {"key": cache["key"], "path": str(folder), "samples": dict(samples), "bytes": size}


def stage_key(configuration: RunConfiguration, name: str) -> str:
    """Hash of the dataset, the model, the seed, the arithmetic, and of every stage up to this one."""
    names = [stage.name for stage in configuration.stages]
    until = configuration.stages[: names.index(configuration.stage(name).name) + 1]
    caches = sorted({cache_key(configuration, view_of(configuration, stage)) for stage in until})
    said = [stage.model_dump(mode="json") for stage in until]
    return digest(caches, configuration.seed, configuration.trainer.precision, said)


def checkpoint_folder(configuration: RunConfiguration, name: str) -> Path:
    """The model folder that a stage leaves; `KiwiEditPipeline.from_pretrained` reads it."""
    return Workspace.of(configuration).checkpoint(stage_key(configuration, name)) / "model"


def finished_stage(configuration: RunConfiguration, name: str) -> dict[str, Any] | None:
    """The result of a finished stage, told to the run again; None where the stage is not finished."""
    folder = checkpoint_folder(configuration, name)
    done = folder.parent / "result.json"
    if not (done.is_file() and folder.is_dir()):
        return None
    result = cast("dict[str, Any]", read_json(done)) | {"checkpoint": str(folder)}  # a work folder may have moved
    write_json(Workspace.of(configuration).root / "training" / f"{name}.json", result)
    return result
