"""Where latents and checkpoints lie and what finished ones say: keys and look-ups that need no torch.

A retried, resumed or repeated task asks here first, so that finding finished work costs no import.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, cast

from kiwi.configuration import RunConfiguration, digest
from kiwi.workspace import Workspace, published, read_json, write_json

CACHE_VERSION = 1
WINDOWS = 4  # windows taken of a clip that is longer than the model's length


def cache_key(configuration: RunConfiguration) -> str:
    """Names the latent cache of the published dataset under a model."""
    return digest(
        CACHE_VERSION, published(configuration)["digest"], configuration.model.model_dump(mode="json"), WINDOWS
    )


def cache_folder(configuration: RunConfiguration) -> Path:
    return Workspace.of(configuration).latents(cache_key(configuration))


def finished_cache(configuration: RunConfiguration) -> dict[str, Any] | None:
    """{"key", "path", "samples": {kind: n}, "bytes"} of a finished cache; None where there is none."""
    folder = cache_folder(configuration)
    if not (folder / "cache.json").is_file():
        return None
    cache = read_json(folder / "cache.json")
    samples: dict[str, int] = defaultdict(int)
    for bucket in cache["buckets"]:
        samples[bucket["kind"]] += bucket["samples"]
    size = sum(bucket["bytes"] for bucket in cache["buckets"])
    return {"key": cache["key"], "path": str(folder), "samples": dict(samples), "bytes": size}


def stage_key(configuration: RunConfiguration, name: str) -> str:
    """Hash of the dataset, the model, the seed, and of every stage up to this one."""
    names = [stage.name for stage in configuration.stages]
    until = configuration.stages[: names.index(configuration.stage(name).name) + 1]
    return digest(cache_key(configuration), configuration.seed, [stage.model_dump(mode="json") for stage in until])


def checkpoint_folder(configuration: RunConfiguration, name: str) -> Path:
    """The model folder that a stage leaves; `KiwiEditPipeline.from_pretrained` reads it."""
    return Workspace.of(configuration).checkpoint(stage_key(configuration, name)) / "model"


def finished_stage(configuration: RunConfiguration, name: str) -> dict[str, Any] | None:
    """The result of a finished stage, told to the run again; None where the stage is not finished."""
    folder = checkpoint_folder(configuration, name)
    done = folder.parent / "result.json"
    if not (done.is_file() and folder.is_dir()):
        return None
    result = cast("dict[str, Any]", read_json(done))
    write_json(Workspace.of(configuration).root / "training" / f"{name}.json", result)
    return result
