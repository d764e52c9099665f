"""What a training can be told: recomputation, precision, parts of a batch, moments, averages, traces, samples."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kiwi.configuration import RunConfiguration, StageSettings, TrainerSettings
from kiwi.errors import UsageError
from kiwi.model.editor import KiwiEditModel
from kiwi.model.flow import noised, training_sigmas
from kiwi.tracking import silent
from kiwi.training import loop
from kiwi.training.adamw import LeanAdamW
from kiwi.training.errors import TrainingError
from kiwi.training.loop import Progress, train
from kiwi.training.loss import edit_weights
from kiwi.training.mixture import Mixture, training_noise
from kiwi.training.operations import counting
from kiwi.training.optimizers import Optimizers, schedule
from kiwi.training.parallelize import check_device, chosen_device, parallelize
from kiwi.training.preemption import Preempted
from kiwi.training.ranks import Ranks
from kiwi.training.samples import sample_editor

NewEditor = Callable[[], KiwiEditModel]
Staged = Callable[..., StageSettings]
Configured = Callable[..., RunConfiguration]
SEED, CPU = 5, torch.device("cpu")


@pytest.fixture
def losses(cache: Path, new_editor: NewEditor, tmp_path: Path) -> Callable[..., list[float]]:
    """losses(stage, **trainer settings): of a whole training."""

    def run(stage: StageSettings, task: Any = None, **said: Any) -> list[float]:
        model, trainer = new_editor(), TrainerSettings(**said)
        parallelize(model, trainer, CPU, Ranks())
        mixture = Mixture(cache, stage, model.context_encoder, SEED)
        progress = train(model, mixture, stage, SEED, tmp_path / "stage", task or silent(), trainer=trainer)
        return [loss for _, loss, _ in progress.losses]

    return run


def test_the_loop_computes_what_a_plain_loop_does_to_the_bit(
    cache: Path, new_editor: NewEditor, staged: Staged, losses: Callable[..., list[float]]
) -> None:
    stage = staged(steps=6, edit_weight=0.7)
    model = new_editor()
    mixture, optimizers = Mixture(cache, stage, model.context_encoder, SEED), Optimizers(model, stage)
    expected = []
    for step, drawn in enumerate(mixture.plan(6)):
        batch = mixture.batch(*drawn)
        noise, levels = training_noise(batch.target.shape, (SEED, 3, step))
        sigma = training_sigmas()[levels]
        context = model.context_encoder(batch.prompts, batch.vision, batch.reference_vision)
        velocity = model(noised(batch.target, noise, sigma), sigma, context, batch.source, batch.reference)
        error = (velocity - (noise - batch.target)).square() * edit_weights(batch.source, batch.target, 0.7)
        error.mean().backward()
        expected.append(round(error.mean().item(), 6))
        torch.nn.utils.clip_grad_norm_(optimizers.parameters, 1.0)
        optimizers.step(schedule(step, 6, stage.warmup_share, stage.decay_to))
    assert losses(stage) == expected


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_activations_changes_no_loss(
    staged: Staged, losses: Callable[..., list[float]], tmp_path: Path, recompute: str
) -> None:
    stage = staged(steps=4, checkpoint_every=100)
    assert losses(stage, recompute=recompute) == pytest.approx(losses(stage), abs=1e-5)


def test_recomputing_runs_blocks_again_in_the_backward_pass(cache: Path, new_editor: NewEditor, staged: Staged) -> None:
    runs = {}
    for recompute in ("none", "full"):
        model = new_editor()
        parallelize(model, TrainerSettings(recompute=recompute), CPU, Ranks())
        calls: list[int] = []
        model.transformer.blocks[0].attn1.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        batch = Mixture(cache, staged(), model.context_encoder, SEED).batch("video", 0, 0)
        loop.flow_matching_loss(model, batch, (1,)).backward()
        runs[recompute] = len(calls)
    assert runs == {"none": 1, "full": 2}


def test_bfloat16_arithmetic_leaves_float32_weights_and_about_the_losses(
    cache: Path, new_editor: NewEditor, staged: Staged, losses: Callable[..., list[float]], tmp_path: Path
) -> None:
    stage = staged(steps=3, checkpoint_every=100)
    exact = losses(stage)
    rounded = losses(stage, precision="bfloat16")
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_parts_of_a_batch_add_up_to_the_batch(staged: Staged, losses: Callable[..., list[float]]) -> None:
    whole = losses(staged(steps=4, checkpoint_every=100))
    assert losses(staged(steps=4, checkpoint_every=100, accumulate=3)) == pytest.approx(whole, abs=1e-4)


def test_bfloat16_moments_step_as_torchs_adamw_within_their_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(64, 32, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    settings: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.01}
    lean, torchs = LeanAdamW([ours], **settings), torch.optim.AdamW([theirs], **settings)
    for _ in range(20):
        ours.grad = torch.randn(64, 32, generator=generator)
        theirs.grad = ours.grad.clone()
        lean.step()
        torchs.step()
    assert {lean.state[ours][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    assert ours.dtype == torch.float32
    moved, apart = (theirs - start).detach().norm(), (ours - theirs).detach().norm()
    assert float(apart / moved) < 0.02
    with pytest.raises(ValueError, match="bfloat16 would round"):
        LeanAdamW([ours], betas=(0.9, 0.999))


def test_averaged_weights_are_what_a_stage_leaves_and_they_resume(
    cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path
) -> None:
    def left(folder: str, **changes: Any) -> tuple[KiwiEditModel, Progress]:
        stage, model = staged(steps=6, **changes), new_editor()
        mixture = Mixture(cache, stage, model.context_encoder, SEED)
        return model, train(model, mixture, stage, SEED, tmp_path / folder, silent())

    last, plain = left("plain")
    mean, averaged = left("mean", ema=0.9)
    assert plain.losses == averaged.losses  # the average is no part of the training
    again, _ = left("mean", ema=0.9)  # from its checkpoint at step 3
    name = "transformer.proj_out.weight"
    weights = [dict(model.named_parameters())[name] for model in (last, mean, again)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])


def test_operations_are_counted_from_the_shapes_that_pass(cache: Path, new_editor: NewEditor, staged: Staged) -> None:
    layer = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    layer[0].weight.requires_grad_(False)
    with counting(layer) as counted:
        layer(torch.ones(3, 8)).sum().backward()
    assert counted.forward == 2 * 3 * (8 * 16 + 16 * 4)
    assert counted.backward == 2 * 3 * 16 * 4 * 2  # weight and input of the second; the first has a frozen weight
    model = new_editor()
    batch = Mixture(cache, staged(), model.context_encoder, SEED).batch("video", 0, 0)
    with counting(model) as counted:
        loop.flow_matching_loss(model, batch, (1,))
    block, width, tokens = model.transformer.blocks[0], 96, 2 * (batch.target.shape[-1] * batch.target.shape[-2])
    matrices = sum(p.numel() for name, p in block.named_parameters() if p.dim() == 2 and "attn2.to_k" not in name)
    assert counted.forward > len(batch.iids) * 3 * (2 * tokens * (matrices - width * width) + 4 * tokens**2 * width)


def test_a_trace_is_written_where_it_is_asked_for(
    staged: Staged, losses: Callable[..., list[float]], tmp_path: Path
) -> None:
    losses(staged(steps=7, checkpoint_every=100), profile=True)
    trace = json.loads((tmp_path / "stage" / loop.TRACE).read_text())
    assert any("addmm" in event.get("name", "") for event in trace["traceEvents"])


def test_a_log_line_tells_losses_by_noise_band_speed_and_waiting(
    staged: Staged, losses: Callable[..., list[float]], recorded: Any
) -> None:
    losses(staged(steps=5, checkpoint_every=100), recorded, log_every=5, peak_tflops=0.001)
    (line,) = [each["metrics"] for each in recorded.said if each["event"] == "metrics"]
    assert {"gradient_norm", "tokens_per_second", "mfu", "data_share", "memory_gb"} <= line.keys()
    assert sum(name.startswith("loss_sigma_") for name in line) == 4
    assert line["mfu"] == pytest.approx(line["tflops"] / 0.001)
    assert line["tflops"] > 0
    assert 0 <= line["data_share"] < 1


def test_sigterm_saves_after_the_step_in_hand_and_asks_to_be_run_again(
    cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Any
) -> None:
    stage = staged(steps=6, checkpoint_every=100)
    before = signal.getsignal(signal.SIGTERM)

    def run(folder: Path, task: Any) -> Progress:
        model = new_editor()
        return train(model, Mixture(cache, stage, model.context_encoder, SEED), stage, SEED, folder, task)

    expected = run(tmp_path / "a", silent()).losses
    original, seen = loop.losses, []

    def losses(*inputs: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*inputs)

    monkeypatch.setattr(loop, "losses", losses)
    with pytest.raises(Preempted) as error:
        run(tmp_path / "b", silent())
    assert error.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert run(tmp_path / "b", recorded).losses == expected
    assert recorded.notes == ["resumed at step 3"]


def test_too_little_memory_names_what_to_lower(
    staged: Staged, losses: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(loop, "losses", full)
    with pytest.raises(TrainingError, match="out of memory in stage stage1") as error:
        losses(staged())
    assert "stages.stage1.batch_size" in error.value.remedy


def test_a_gpu_that_is_not_there_is_one_clear_line(new_editor: NewEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no usable GPU"):
        chosen_device("cuda")
    with pytest.raises(UsageError, match="no device 'tpu9'"):
        chosen_device("tpu9")
    model = new_editor()
    check_device(chosen_device("auto"), "auto", model)
    model.name = "wan2.2-5b"
    with pytest.raises(UsageError, match="needs a GPU"):
        check_device(chosen_device("auto"), "auto", model)
    check_device(chosen_device("cpu"), "cpu", model)


def test_sample_edits_are_videos_and_change_no_loss(
    workspace: Path, cache: Path, configured: Configured, new_editor: NewEditor, staged: Staged, tmp_path: Path,
    recorded: Any,
) -> None:  # fmt: skip
    from kiwi.media.reading import decode

    stage, found = staged(steps=4, checkpoint_every=100), []
    trainer = TrainerSettings(samples_every=2, samples=2)
    for asked in (False, True):
        model = new_editor()
        configuration = configured(workspace, stage).model_copy(update={"trainer": trainer})
        edit = sample_editor(configuration, model, tmp_path, recorded, Ranks(), CPU) if asked else None
        mixture = Mixture(cache, stage, model.context_encoder, SEED)
        found.append(train(model, mixture, stage, SEED, tmp_path, silent(), trainer=trainer, edit_samples=edit).losses)
    assert found[0] == found[1]
    folders = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert folders == ["step-00000002", "step-00000004"]
    clips = [decode(path.read_bytes()).frames for path in (tmp_path / "samples" / folders[1]).iterdir()]
    assert len(clips) == 2
    assert all(clip.shape[2] % 3 == 0 and np.ptp(clip) > 0 for clip in clips)
    assert [each["event"] for each in recorded.said].count("artifact") == 2


def test_sample_edits_count_as_no_training_time(
    cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Any
) -> None:
    stage, trainer, clock = (
        staged(steps=4, checkpoint_every=100),
        TrainerSettings(samples_every=1, log_every=2),
        Clock(),
    )
    monkeypatch.setattr(loop, "time", clock)
    model = new_editor()
    mixture = Mixture(cache, stage, model.context_encoder, SEED)
    original = loop.losses

    def losses(*inputs: Any) -> Any:
        clock.now += 1.0
        return original(*inputs)

    def edit(step: int) -> None:
        clock.now += 1000.0

    monkeypatch.setattr(loop, "losses", losses)
    progress = train(model, mixture, stage, SEED, tmp_path, recorded, trainer=trainer, edit_samples=edit)
    assert clock.now == 4 + 4 * 1000, "one piece a step, and an edit after each"
    assert progress.seconds == 4
    lines = [each["metrics"] for each in recorded.said if each["event"] == "metrics"]
    assert [line["samples_per_second"] for line in lines] == [stage.batch_size, stage.batch_size]


class Clock:
    """A fake of the module `time`, which only losses and sample edits move, for a real one is never exact."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_trace_and_recomputation_without_a_gpu_print_nothing(
    staged: Staged,
    losses: Callable[..., list[float]],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    original = torch.profiler.profile
    monkeypatch.setattr(torch.profiler, "profile", lambda **said: asked.append(said["activities"]) or original(**said))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        losses(staged(steps=7, checkpoint_every=100), profile=True, recompute="full")
    assert asked == [[torch.profiler.ProfilerActivity.CPU]]
    assert capfd.readouterr().err == ""
