"""The training loop of one stage: rectified flow on cached latents, with checkpoints that resume exactly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiwi.configuration import StageSettings, TrainerSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.model.inputs import frames_to_tensor
from kiwi.tracking import TaskRun
from kiwi.training.averaging import Averaged
from kiwi.training.checkpoints import Checkpoints
from kiwi.training.errors import TrainingError
from kiwi.training.loader import Loader, Piece, Ready, loading
from kiwi.training.loss import edit_weights, flow_matching_loss, losses
from kiwi.training.metrics import Window, band_sums
from kiwi.training.mixture import Batch, Mixture
from kiwi.training.operations import OperationsByShape, counting, peak_tflops
from kiwi.training.optimizers import Optimizers, schedule
from kiwi.training.preemption import Notice, Preempted, notice_of_sigterm
from kiwi.training.ranks import Ranks, whole

__all__ = ["Progress", "edit_weights", "flow_matching_loss", "train"]

PROFILED = (3, 6)  # steps of this process that a trace covers
TRACE = "trace.json"
SILENT = "6"  # above the profiler's own levels: without a GPU it prints lines that it finds none
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass
class Progress:
    """What a stage has done: steps, samples, seconds spent training, and the loss of each step."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0  # without sample edits
    losses: list[tuple[int, float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """Everything that the steps of a stage work with."""

    model: KiwiEditModel
    stage: StageSettings
    trainer: TrainerSettings
    ranks: Ranks
    device: torch.device
    optimizers: Optimizers
    average: Averaged | None
    operations: OperationsByShape

    def state(self) -> dict[str, Tensor]:
        """Every tensor that resuming needs, under its name in a checkpoint; what is one tensor is not copied."""
        tensors = {f"model.{name}": weights for name, weights in self.optimizers.weights().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizers.tensors().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.tensors.items()}
        return tensors


@dataclass(frozen=True)
class Told:
    """What the one synchronisation of a step brings: sums over all ranks."""

    loss: float
    norm: float
    bands: list[float]
    stop: bool
    written: bool


def train(
    model: KiwiEditModel, mixture: Mixture, stage: StageSettings, seed: int, folder: Path, task: TaskRun, *,
    trainer: TrainerSettings | None = None, ranks: Ranks | None = None, device: torch.device | None = None,
    edit_samples: Callable[[int], None] | None = None,
) -> Progress:  # fmt: skip
    """Trains `model` in place for the stage's steps, from the newest checkpoint in `folder` if there is one.

    Args:
        model: parallelized already, where it is to be.
        folder: of the stage; its checkpoints stay there until the caller has kept the result.
        edit_samples: called with the step, every `trainer.samples_every` steps, by all ranks.

    Raises:
        Preempted: SIGTERM; the state was saved.
        TrainingError: a loss or gradient that is not finite (the message names the samples), a damaged or foreign
            checkpoint, a disk that refuses one, or too little memory.
    """
    trainer, ranks, device = trainer or TrainerSettings(), ranks or Ranks(), device or torch.device("cpu")
    optimizers = Optimizers(model, stage, trainer)
    average = Averaged(optimizers.named.items(), stage.ema, optimizers.masters.whole) if stage.ema else None
    run = Run(model, stage, trainer, ranks, device, optimizers, average, OperationsByShape())
    checkpoints = Checkpoints(folder, ranks, trainer.keep)
    progress = _resumed(run, checkpoints)
    if progress.step:
        task.note(f"resumed at step {progress.step}")
    model.train()
    steps = mixture.steps()
    with ExitStack() as stack:
        notice = stack.enter_context(notice_of_sigterm())
        loader = stack.enter_context(
            loading(mixture, mixture.plan(steps), progress.step, seed, ranks, parts=stage.accumulate,
                    ahead=trainer.prefetch)
        )  # fmt: skip
        stack.enter_context(_whole_checkpoint(checkpoints, ranks))
        _steps(run, loader, steps, progress, checkpoints, notice, task, folder, edit_samples)
    optimizers.settle()
    if average is not None:
        average.apply()
    return progress


def _steps(
    run: Run, loader: Loader, steps: int, progress: Progress, checkpoints: Checkpoints, notice: Notice,
    task: TaskRun, folder: Path, edit_samples: Callable[[int], None] | None,
) -> None:  # fmt: skip
    stage, trainer = run.stage, run.trainer
    peak = peak_tflops(trainer.peak_tflops, run.device)
    window, waited, first = Window(), 0.0, progress.step
    began, before = time.monotonic(), progress.seconds
    logged = began
    with _tracing(run, folder, first, steps) as traced:
        for ready in loader:
            step, kind = ready.step, ready.pieces[0].batch.kind
            told = _step(run, ready, steps, notice, checkpoints)
            if told.written:
                checkpoints.commit()
            progress.losses.append((step, round(told.loss, 6), kind))
            progress.step, progress.samples = step + 1, progress.samples + ready.size
            now = time.monotonic()
            progress.seconds = before + now - began
            window.add(kind, told.loss, told.bands, ready.size, ready.tokens, run.operations.of(_shape(ready)))
            traced()
            if progress.step % trainer.log_every == 0 or progress.step == steps:
                window.seconds, window.waited = now - logged, loader.waited - waited
                _log(task, window, progress, steps, told.norm, peak)
                window, waited, logged = Window(), loader.waited, now
            if told.stop and progress.step < steps:
                checkpoints.save(progress.step, run.state(), _said(progress), wait=True)
                raise Preempted(
                    f"stopped at step {progress.step} of {steps} as asked, and saved", "the same command resumes"
                )
            if progress.step % stage.checkpoint_every == 0 and progress.step < steps:
                checkpoints.save(progress.step, run.state(), _said(progress), wait=not trainer.asynchronous)
            if edit_samples is not None and trainer.samples_every and progress.step % trainer.samples_every == 0:
                paused = time.monotonic()
                edit_samples(progress.step)
                run.model.train()
                spent = time.monotonic() - paused
                began, logged = began + spent, logged + spent  # editing is no training
    checkpoints.finish()


def _step(run: Run, ready: Ready, steps: int, notice: Notice, checkpoints: Checkpoints) -> Told:
    """One optimiser step: forward and backward of each piece, clipping, one synchronisation, the update."""
    shape = _shape(ready)
    unknown = not run.operations.known(shape)
    with _memory_told(run.stage):
        with _counted(run, shape) if unknown else nullcontext():
            sums = [_forward_backward(run, piece) for piece in ready.pieces]
        norm = run.optimizers.clip(run.stage.gradient_clip)
    told = _synchronised(run, sums, whole(norm).detach(), notice, checkpoints)
    if not (_finite(told.loss) and _finite(told.norm)):
        raise _not_finite(run, ready, told, [each[2] for each in sums])
    run.optimizers.step(schedule(ready.step, steps, run.stage.warmup_share, run.stage.decay_to))
    if run.average is not None:
        run.average.update(ready.step)
    return told


def _forward_backward(run: Run, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
    """(share of the loss, band sums, the samples' losses) of one piece; gradients are added to."""
    batch = _with_references(run, piece.batch.to(run.device))
    noise, levels = piece.noise.to(run.device), piece.levels.to(run.device)
    found = losses(run.model, batch, noise, levels, run.stage)
    weight = piece.share / run.stage.accumulate
    loss = found.loss if weight == 1 else found.loss * weight
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach() / run.ranks.world, band_sums(found.by_sample, found.sigma), found.by_sample


@torch.no_grad()
def _with_references(run: Run, batch: Batch) -> Batch:
    """Encodes references that were varied in this draw, and so are not in the cache."""
    if batch.reference_pixels is None:
        return batch
    codec: Any = run.model.codec
    encoded = codec.encode(frames_to_tensor(batch.reference_pixels[:, None].numpy()).to(run.device))
    return replace(batch, reference=encoded.to(run.device), reference_pixels=None)


def _synchronised(
    run: Run, sums: list[tuple[Tensor, Tensor, Tensor]], norm: Tensor, notice: Notice, checkpoints: Checkpoints
) -> Told:
    loss = torch.stack([each[0] for each in sums]).double().sum() if len(sums) > 1 else sums[0][0].double()
    bands = torch.stack([each[1] for each in sums]).sum(dim=0)
    flags = torch.tensor([float(notice.given), float(checkpoints.written)], dtype=torch.float64).to(loss.device)
    every = [loss[None], bands, flags, norm.double()[None] / run.ranks.world]
    values: list[float] = run.ranks.sum(torch.cat(every)).tolist()
    stop, written, clipped = values[-3:]
    return Told(values[0], clipped, values[1:-3], stop > 0, written == run.ranks.world)


def _shape(ready: Ready) -> tuple[Any, ...]:
    return tuple((piece.batch.kind, *piece.batch.target.shape, piece.batch.vision.shape[1]) for piece in ready.pieces)


@contextmanager
def _counted(run: Run, shape: tuple[Any, ...]) -> Iterator[None]:
    """Counts the operations of the first step of a shape; compiled blocks run uncompiled in it."""
    stance = torch.compiler.set_stance("force_eager") if run.trainer.compile else nullcontext()
    with stance, counting(run.model) as counted:
        yield
    run.operations.learn(shape, counted.total)


def _finite(value: float) -> bool:
    return value - value == 0


def _not_finite(run: Run, ready: Ready, told: Told, by_sample: list[Tensor]) -> TrainingError:
    """Names the samples whose own losses are not finite; all of the step where it is the gradient alone."""
    every = [iid for piece in ready.pieces for iid in piece.batch.iids]
    broken = [
        iid
        for piece, values in zip(ready.pieces, by_sample, strict=True)
        for iid, value in zip(piece.batch.iids, values.tolist(), strict=True)
        if not _finite(value)
    ]
    what, value = ("loss", told.loss) if not _finite(told.loss) else ("gradient", told.norm)
    named = _gathered(broken if what == "loss" else every, run.ranks) or _gathered(every, run.ranks)
    return TrainingError(
        f"the {what} of step {ready.step} is {value}; its samples: {', '.join(named)}",
        "look at these samples, or lower the learning rate",
    )


def _gathered(iids: list[str], ranks: Ranks) -> list[str]:
    if not ranks.several:
        return iids
    found: list[list[str]] = [[] for _ in range(ranks.world)]
    torch.distributed.all_gather_object(found, iids)
    return [iid for own in found for iid in own]


@contextmanager
def _memory_told(stage: StageSettings) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not any(said in str(error).lower() for said in OUT_OF_MEMORY):
            raise
        lines = str(error).strip().splitlines()
        batch = f"batch_tokens={stage.batch_tokens}" if stage.batch_tokens else f"batch_size={stage.batch_size}"
        raise TrainingError(
            f"out of memory in stage {stage.name} ({batch}, accumulate={stage.accumulate}): {lines[0]}",
            f"--set trainer.recompute=full, raise stages.{stage.name}.accumulate, "
            f"or lower stages.{stage.name}.{batch.partition('=')[0]} or its size",
        ) from error


@contextmanager
def _whole_checkpoint(checkpoints: Checkpoints, ranks: Ranks) -> Iterator[None]:
    """Where training ends early, a checkpoint that is being written is finished first; several ranks cannot agree
    on that any more, and leave it uncommitted.
    """
    try:
        yield
    except BaseException:
        if not ranks.several:
            checkpoints.finish()
        raise


@contextmanager
def _tracing(run: Run, folder: Path, first: int, steps: int) -> Iterator[Callable[[], None]]:
    """Writes a trace of a few steps, if asked for; what it yields is called after each step."""
    if not (run.trainer.profile and run.ranks.first):
        yield lambda: None
        return
    begin, end = PROFILED
    folder.mkdir(parents=True, exist_ok=True)
    plan = torch.profiler.schedule(wait=begin - 1, warmup=1, active=max(1, min(end, steps - first) - begin), repeat=1)

    def keep(profiler: Any) -> None:
        profiler.export_chrome_trace(str(folder / TRACE))

    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", SILENT)
    with torch.profiler.profile(activities=activities, schedule=plan, on_trace_ready=keep) as profiler:
        yield profiler.step


def _log(task: TaskRun, window: Window, progress: Progress, steps: int, norm: float, peak: float | None) -> None:
    figures = window.figures(norm, peak)
    task.metrics(figures, step=progress.step)
    task.progress(progress.step, steps, "steps", f"loss {figures['loss']:.3f}")


def _said(progress: Progress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "samples": progress.samples,
        "seconds": progress.seconds,
        "losses": progress.losses[:],
    }


def _resumed(run: Run, checkpoints: Checkpoints) -> Progress:
    stored = checkpoints.latest()
    if stored is None:
        return Progress()
    run.optimizers.blank(name.removeprefix("optimizer.") for name in stored.shapes if name.startswith("optimizer."))
    tensors = run.state()
    stored.check(tensors)
    stored.fill(tensors)
    run.optimizers.take({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    said = stored.said
    return Progress(
        said["step"], said["samples"], said["seconds"], [(step, loss, kind) for step, loss, kind in said["losses"]]
    )
