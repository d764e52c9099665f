"""The training loop of one stage: rectified flow on cached latents, with checkpoints that resume exactly."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kiwi.configuration import StageSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.model.flow import noised, training_sigmas
from kiwi.tracking import TaskRun
from kiwi.training.errors import TrainingError
from kiwi.training.mixture import Batch, Mixture, training_noise
from kiwi.training.optimizers import Optimizers, schedule

GRADIENT_CLIP = 1.0
MOST_CHANGE = 8.0
LOG_EVERY = 10
STATE = "state.safetensors"


@dataclass
class Progress:
    """What a stage has done: steps, seconds spent training, and the loss of each step."""

    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float, str]] = field(default_factory=list)


def train(
    model: KiwiEditModel, mixture: Mixture, stage: StageSettings, seed: int, folder: Path, task: TaskRun
) -> Progress:
    """Trains `model` in place for the stage's steps, from the checkpoint in `folder` if there is one.

    Raises:
        TrainingError: a loss or gradient that is not finite (the message names the samples of the step), or a
            damaged state to resume from.
    """
    optimizers = Optimizers(model, stage)
    steps = mixture.steps()
    plan = mixture.plan(steps)
    progress = _resumed(model, optimizers, folder)
    if progress.step:
        task.note(f"resumed at step {progress.step}")
    model.train()
    began, before = time.monotonic(), progress.seconds
    for step in range(progress.step, steps):
        kind, place, drawn = plan[step]
        batch = mixture.batch(kind, place, drawn)
        loss = flow_matching_loss(model, batch, (seed, 3, step), stage.edit_weight)
        value = loss.item()
        if not torch.isfinite(loss):
            raise _not_finite("loss", step, value, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(optimizers.parameters, GRADIENT_CLIP)
        if not torch.isfinite(norm):
            raise _not_finite("gradient", step, float(norm), batch)
        optimizers.step(schedule(step, steps, stage.warmup_share, stage.decay_to))
        progress.losses.append((step, round(value, 6), kind))
        progress.step = step + 1
        progress.seconds = before + time.monotonic() - began
        if progress.step % LOG_EVERY == 0 or progress.step == steps:
            _log(task, progress, steps, stage.batch_size, float(norm))
        if progress.step % stage.checkpoint_every == 0 and progress.step < steps:
            _save(model, optimizers, progress, folder)
    return progress


def _not_finite(what: str, step: int, value: float, batch: Batch) -> TrainingError:
    return TrainingError(
        f"the {what} of step {step} is {value}; its samples: {', '.join(batch.iids)}",
        "look at these samples, or lower the learning rate",
    )


def flow_matching_loss(
    model: KiwiEditModel, batch: Batch, seed: tuple[int, ...], edit_weight: float = 0.0
) -> torch.Tensor:
    """Mean squared error of the velocity over a batch (paper, equation 2), in float32.

    With an `edit_weight`, places where source and target differ count more; the minimum stays where it was, since
    each place is still fitted by its own squared error.
    """
    noise, levels = training_noise(batch.target.shape, seed)
    sigma = training_sigmas()[levels]
    context = model.context_encoder(batch.prompts, batch.vision, batch.reference_vision)
    velocity = model(noised(batch.target, noise, sigma), sigma, context, batch.source, batch.reference)
    error = (velocity - (noise - batch.target)).square()
    if edit_weight:
        error = error * edit_weights(batch.source, batch.target, edit_weight)
    return cast(torch.Tensor, error.mean())


def edit_weights(source: torch.Tensor, target: torch.Tensor, strength: float) -> torch.Tensor:
    """Weights of mean 1 a sample over latent places: 1 + strength · (change there over its mean, at most 8).

    Args:
        source, target: latents [B, C, F, h, w].

    Returns:
        [B, 1, F, h, w].
    """
    change = (target - source).abs().mean(dim=1, keepdim=True)
    share = change / (change.mean(dim=(2, 3, 4), keepdim=True) + 1e-6)
    weights = 1 + strength * share.clamp(max=MOST_CHANGE)
    return weights / weights.mean(dim=(2, 3, 4), keepdim=True)


def _log(task: TaskRun, progress: Progress, steps: int, batch_size: int, norm: float) -> None:
    recent = progress.losses[-LOG_EVERY:]
    figures = {"loss": sum(loss for _, loss, _ in recent) / len(recent), "gradient_norm": norm}
    for kind in sorted({kind for _, _, kind in recent}):
        own = [loss for _, loss, of in recent if of == kind]
        figures[f"loss_{kind}"] = sum(own) / len(own)
    figures["samples_per_second"] = progress.step * batch_size / max(progress.seconds, 1e-9)
    task.metrics(figures, step=progress.step)
    task.progress(progress.step, steps, "steps", f"loss {figures['loss']:.3f}")


def _save(model: KiwiEditModel, optimizers: Optimizers, progress: Progress, folder: Path) -> None:
    """Everything that resuming needs, in one file that appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"optimizer.{name}": value for name, value in optimizers.tensors().items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"model.{name}"] = parameter.detach()
    said = {"step": progress.step, "seconds": progress.seconds, "losses": progress.losses}
    temporary = folder / f".{STATE}.{os.getpid()}.tmp"
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"progress": json.dumps(said)}
    )
    os.replace(temporary, folder / STATE)


def _resumed(model: KiwiEditModel, optimizers: Optimizers, folder: Path) -> Progress:
    path = folder / STATE
    if not path.is_file():
        return Progress()
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads(file.metadata()["progress"])
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be resumed from: {error}", "delete it to train the stage anew") from error
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith("model."):
                parameters[name.removeprefix("model.")].copy_(tensor)
    optimizers.load({k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")})
    return Progress(said["step"], said["seconds"], [(step, loss, kind) for step, loss, kind in said["losses"]])
