"""The curriculum (paper, section 4.2): one stage after another, each from the checkpoint of the one before.

A stage's folder is named by the hash of everything that made it, so a retried or repeated stage finds its own
finished checkpoint, or the state to resume from, and never another's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from kiwi.configuration import RunConfiguration, StageSettings
from kiwi.model.checkpoint import load_model, save_model
from kiwi.model.editor import KiwiEditModel
from kiwi.model.imports import light_imports
from kiwi.model.instruction import Mode
from kiwi.tracking import TaskRun
from kiwi.training.card import model_card, origin_of
from kiwi.training.checkpoints import FOLDER
from kiwi.training.errors import TrainingError
from kiwi.training.latents import compute_cache, encoder_digest
from kiwi.training.loop import TRACE, Progress, train
from kiwi.training.mixture import Mixture, Patching
from kiwi.training.optimizers import freeze_all_but
from kiwi.training.parallelize import check_device, chosen_device, parallelize
from kiwi.training.ranks import Ranks, joined_ranks, whole
from kiwi.training.results import cache_folder, checkpoint_folder, finished_cache, finished_stage, stage_key
from kiwi.training.samples import sample_editor
from kiwi.training.start import initial_model
from kiwi.training.views import view_of
from kiwi.workspace import published, write_json


def run_stage(configuration: RunConfiguration, name: str, task: TaskRun) -> dict[str, Any]:
    """Trains one stage, or resumes it where it was stopped; alone, or as one of torchrun's ranks.

    Returns:
        {"name", "key", "checkpoint", "start", "steps", "samples", "seconds", "samples_per_second", "loss_first",
        "loss_last", "losses": [[step, loss, kind], ...]}.

    Raises:
        Preempted: SIGTERM; the stage can be resumed.
        TrainingError: the stage before was not trained, the data lacks what the stage needs, a loss is not finite.
    """
    configuration.stage(name)
    torch.set_num_threads(configuration.threads)
    compiler = configuration.trainer.compile or int(os.environ.get("WORLD_SIZE", "1")) > 1  # FSDP needs it too
    with light_imports(compiler=not compiler):
        return _run_stage(configuration, name, task, compiler)


def _run_stage(configuration: RunConfiguration, name: str, task: TaskRun, compiler: bool) -> dict[str, Any]:
    if compiler:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn")  # the same, without importing the compiler to tell it
    device = chosen_device(configuration.trainer.device)
    with joined_ranks(device) as ranks:
        _cache(configuration, task, ranks)
        found = finished_stage(configuration, name)
        if found is None:
            _train(configuration, name, task, device, ranks)
            ranks.wait()
            found = finished_stage(configuration, name)
    assert found is not None
    return found


def _cache(configuration: RunConfiguration, task: TaskRun, ranks: Ranks) -> None:
    """The latent cache, whose chunks the ranks share where it is not there yet."""
    missing = finished_cache(configuration) is None
    ranks.wait()
    if missing:
        done = compute_cache(configuration, task, (ranks.rank, ranks.world))
        ranks.wait()
        if ranks.first and done is None:
            compute_cache(configuration, task)
        ranks.wait()


def _train(configuration: RunConfiguration, name: str, task: TaskRun, device: torch.device, ranks: Ranks) -> None:
    stage, folder = configuration.stage(name), checkpoint_folder(configuration, name)
    model, origin = _start(configuration, stage)
    check_device(device, configuration.trainer.device, model)
    mixture = _mixture(configuration, stage, model, ranks)
    for kind in mixture.missing:
        task.note(f"the dataset has no {kind} samples; the other kinds of the mix take their steps")
    task.params({f"stage.{key}": value for key, value in stage.model_dump(mode="json").items()})
    task.params({f"trainer.{key}": value for key, value in configuration.trainer.model_dump(mode="json").items()})
    task.params({"seed": configuration.seed, "start": origin, "samples": mixture.samples, "ranks": ranks.world})
    said = published(configuration)
    task.tags({"dataset": said["version"], "dataset_revision": said["revision"]})
    freeze_all_but(model, stage.trainable)
    parallelize(model, configuration.trainer, device, ranks)
    progress = train(
        model, mixture, stage, configuration.seed, folder.parent, task, trainer=configuration.trainer, ranks=ranks,
        device=device, edit_samples=sample_editor(configuration, model, folder.parent, task, ranks, device),
    )  # fmt: skip
    trace = folder.parent / TRACE
    if configuration.trainer.profile and trace.is_file():
        task.artifact(trace)
    as_it_was = configuration.trainer.precision == "float32" and not ranks.several
    trained = model if as_it_was else _unsharded(model, ranks, lambda: _start(configuration, stage)[0])
    if trained is not None:
        _keep(configuration, stage, trained, progress, origin)


def _mixture(configuration: RunConfiguration, stage: StageSettings, model: KiwiEditModel, ranks: Ranks) -> Mixture:
    config, codec = model.transformer.config, model.codec
    time, height, width = config.patch_size
    patching = Patching(height * codec.spatial_stride, width * codec.spatial_stride, time * codec.temporal_stride)
    return Mixture(
        cache_folder(configuration, view_of(configuration, stage)), stage, model.context_encoder, configuration.seed,
        patching=patching, least=ranks.world * stage.accumulate, dataset=published(configuration)["digest"],
        encoder_digest=encoder_digest(model),
    )  # fmt: skip


@torch.no_grad()
def _unsharded(model: KiwiEditModel, ranks: Ranks, again: Callable[[], KiwiEditModel]) -> KiwiEditModel | None:
    """What the stage started from with the trained weights in it, on the first rank; the others help to gather them,
    and get None.

    What is frozen may have been rounded for training. It is kept as it was: the next stage's latent cache was made
    with these weights of the autoencoder and of the vision tower, and would refuse others.
    """
    plain = again() if ranks.first else None
    named = dict(plain.named_parameters()) if plain is not None else {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            full = whole(parameter)
            if name in named:
                named[name].data = full.float().cpu().clone()  # what was gathered may lie in a padded storage
    return plain


def _keep(
    configuration: RunConfiguration, stage: StageSettings, model: KiwiEditModel, progress: Progress, origin: str
) -> None:
    """Writes the model, then the result that makes the stage a finished one; its checkpoints are no longer needed."""
    folder = checkpoint_folder(configuration, stage.name)
    result = _result(stage, stage_key(configuration, stage.name), folder, progress, origin)
    save_model(model, folder, model_card(configuration, result))
    write_json(folder.parent / "result.json", result)
    shutil.rmtree(folder.parent / FOLDER, ignore_errors=True)


def _start(configuration: RunConfiguration, stage: StageSettings) -> tuple[KiwiEditModel, str]:
    """The model that a stage starts from, and what to call it."""
    names = [each.name for each in configuration.stages]
    place = names.index(stage.name)
    if place == 0:
        return initial_model(configuration.model), origin_of(configuration.model)
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
        "samples": progress.samples,
        "seconds": round(progress.seconds, 3),
        "samples_per_second": round(progress.samples / max(progress.seconds, 1e-9), 2),
        "loss_first": sum(loss for _, loss, _ in losses[:window]) / window,
        "loss_last": sum(loss for _, loss, _ in losses[-window:]) / window,
        "losses": losses,
    }
