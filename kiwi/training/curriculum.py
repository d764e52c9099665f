"""The curriculum (paper, section 4.2): one stage after another, each from the checkpoint of the one before.

A stage's folder is named by the hash of everything that made it, so a retried or repeated stage finds its own
finished checkpoint, or the state to resume from, and never another's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch

from kiwi.configuration import RunConfiguration, StageSettings
from kiwi.model.checkpoint import load_model, save_model
from kiwi.model.editor import KiwiEditModel
from kiwi.model.instruction import Mode
from kiwi.tracking import TaskRun
from kiwi.training.errors import TrainingError
from kiwi.training.latents import compute_cache
from kiwi.training.loop import STATE, Progress, train
from kiwi.training.mixture import Mixture
from kiwi.training.results import checkpoint_folder, finished_cache, finished_stage, stage_key
from kiwi.training.start import initial_model
from kiwi.workspace import published, write_json


def run_stage(configuration: RunConfiguration, name: str, task: TaskRun) -> dict[str, Any]:
    """Trains one stage, or resumes it where it was stopped.

    Returns:
        {"name", "key", "checkpoint", "steps", "samples", "seconds", "samples_per_second", "loss_first", "loss_last",
        "losses": [[step, loss, kind], ...], "initial_weights"}.

    Raises:
        TrainingError: the stage before was not trained, the data lacks what the stage needs, a loss is not finite.
    """
    stage = configuration.stage(name)
    folder = checkpoint_folder(configuration, name)
    torch.set_num_threads(configuration.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    model, origin = _start(configuration, stage)
    cache = Path((finished_cache(configuration) or compute_cache(configuration, task))["path"])
    mixture = Mixture(cache, stage, model.context_encoder, configuration.seed)
    for kind in mixture.missing:
        task.note(f"the dataset has no {kind} samples; the other kinds of the mix take their steps")
    task.params({f"stage.{key}": value for key, value in stage.model_dump(mode="json").items()})
    task.params({"seed": configuration.seed, "start": origin, "samples": mixture.samples})
    task.tags(
        {"dataset": published(configuration)["version"], "dataset_revision": published(configuration)["revision"]}
    )
    progress = train(model, mixture, stage, configuration.seed, folder.parent, task)
    result = _result(stage, stage_key(configuration, name), folder, progress, origin)
    save_model(model, folder, model_card(configuration, result))
    write_json(folder.parent / "result.json", result)
    (folder.parent / STATE).unlink(missing_ok=True)
    finished = finished_stage(configuration, name)
    assert finished is not None
    return finished


def _start(configuration: RunConfiguration, stage: StageSettings) -> tuple[KiwiEditModel, str]:
    """The model that a stage starts from, and what to call it."""
    names = [each.name for each in configuration.stages]
    place = names.index(stage.name)
    if place == 0:
        return initial_model(configuration.model), "random weights"
    previous = checkpoint_folder(configuration, names[place - 1])
    if not previous.is_dir():
        raise TrainingError(
            f"stage {stage.name} starts from {names[place - 1]}, which was not trained: {previous} does not exist",
            f"train {names[place - 1]} first",
        )
    model = load_model(previous)
    for origin, destination in stage.start_queries:
        model.context_encoder.copy_queries(cast(Mode, origin), cast(Mode, destination))
    return model, names[place - 1]


def _result(stage: StageSettings, key: str, folder: Path, progress: Progress, origin: str) -> dict[str, Any]:
    losses = progress.losses
    window = max(1, min(50, len(losses) // 5))
    return {
        "name": stage.name,
        "key": key,
        "checkpoint": str(folder),
        "start": origin,
        "steps": progress.step,
        "samples": progress.step * stage.batch_size,
        "seconds": round(progress.seconds, 3),
        "samples_per_second": round(progress.step * stage.batch_size / max(progress.seconds, 1e-9), 2),
        "loss_first": sum(loss for _, loss, _ in losses[:window]) / window,
        "loss_last": sum(loss for _, loss, _ in losses[-window:]) / window,
        "losses": losses,
    }


def model_card(configuration: RunConfiguration, result: dict[str, Any]) -> str:
    """The README of a model folder: what it is, from what it was made, and what it must not be taken for."""
    dataset = published(configuration)
    stages = json.dumps([stage.name for stage in configuration.stages])
    return (
        f"# {configuration.model_name}, after {result['name']}\n\n"
        f"An editor in Kiwi-Edit's architecture (arXiv 2603.02175), preset `{configuration.preset}`. Its weights were "
        "random when training started, the frozen parts of its language model still are, and its latent codec is a "
        "fixed transform: it is a small model that shows the method at work, and no released Kiwi-Edit model.\n\n"
        f"- dataset: `{dataset['version']}` at `{dataset['revision']}`\n"
        f"- configuration: `{configuration.identity()}`, seed {configuration.seed}, stages {stages}\n"
        f"- this stage: {result['steps']} steps from {result['start']}, "
        f"loss {result['loss_first']:.4f} to {result['loss_last']:.4f}\n"
    )
