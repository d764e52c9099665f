"""AdamW with small moments, weights in halves, Muon, the groups of a stage's optimisers, and their schedule."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kiwi.configuration import StageSettings, TrainerSettings
from kiwi.errors import UsageError
from kiwi.model.editor import KiwiEditModel
from kiwi.training import adamw
from kiwi.training.adamw import LeanAdamW
from kiwi.training.averaging import Averaged
from kiwi.training.masters import Masters, halves, joined
from kiwi.training.muon import Muon, orthogonalised
from kiwi.training.optimizers import Optimizers, schedule, trainable

NewEditor = Callable[[], KiwiEditModel]
Staged = Callable[..., StageSettings]


@pytest.mark.parametrize("shape", [(96, 96), (192, 96), (96, 192), (8, 200)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_orthogonalising_brings_every_singular_value_near_one(shape: tuple[int, int], scale: float) -> None:
    matrices = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)) * scale
    rows, columns = shape
    values = torch.linalg.svdvals(orthogonalised(matrices))
    if rows != columns:  # a square random matrix has singular values near 0, which five steps do not lift
        assert float(values.min()) > 0.6
    assert float(values.quantile(0.05)) > 0.6
    assert float(values.max()) < 1.3


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    matrices = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(2))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    rotated = left.mT @ orthogonalised(matrices) @ right.mT
    off = rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))
    assert float(off.abs().max()) < 1e-3


def test_orthogonalising_a_batch_is_orthogonalising_each() -> None:
    matrices = torch.randn(4, 32, 48, generator=torch.Generator().manual_seed(3)) * torch.tensor(
        [1e-3, 1.0, 10.0, 1e3]
    ).view(4, 1, 1)
    together = orthogonalised(matrices)
    for index in range(4):
        assert torch.allclose(together[index], orthogonalised(matrices[index : index + 1])[0], atol=1e-5)


def test_our_muon_steps_as_torchs_does() -> None:
    """torch.optim.Muon works in bfloat16, so the steps agree to about its precision."""
    generator = torch.Generator().manual_seed(4)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((96, 48), (48, 96), (64, 64))]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    settings: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    before = [parameter.detach().clone() for parameter in ours]
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, start in zip(ours, theirs, before, strict=True):
        moved, expected = (one - start).detach().flatten(), (other - start).detach().flatten()
        assert torch.cosine_similarity(moved, expected, dim=0) > 0.999
        assert 0.98 < float(moved.norm() / expected.norm()) < 1.02


def test_muon_refuses_what_is_no_matrix_and_leaves_what_has_no_gradient() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.zeros(3))])
    idle, busy = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    busy.grad = torch.eye(4)
    Muon([idle, busy]).step()
    assert torch.equal(idle, torch.ones(4, 4))
    assert not torch.equal(busy, torch.ones(4, 4))


def test_the_schedule_rises_over_the_warmup_and_falls_to_its_end() -> None:
    shares = [schedule(step, 100, 0.1, 0.2) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == pytest.approx(1 - 0.8 * 9 / 100)
    assert all(later > earlier for earlier, later in itertools.pairwise(shares[:10]))
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[9:]))
    assert shares[-1] == pytest.approx(0.2 + 0.8 / 100)


def test_a_schedule_without_warmup_or_decay_is_flat_and_one_step_is_enough() -> None:
    assert {schedule(step, 7, 0.0, 1.0) for step in range(7)} == {1.0}
    assert schedule(0, 1, 0.03, 0.0) == 1.0


def test_the_curriculums_stages_meet_where_one_ends_and_the_next_starts() -> None:
    """Stage 1 of the tiny preset falls to 0.6 of its peak, where stage 2 takes it up."""
    from kiwi.presets import PRESETS

    stages = PRESETS["tiny"](workspace="w", tracking_uri="").stages
    for one, following in itertools.pairwise(stages):
        assert one.learning_rate * one.decay_to == pytest.approx(following.learning_rate)
        assert one.muon_learning_rate * one.decay_to == pytest.approx(following.muon_learning_rate)


@pytest.mark.parametrize(
    ("part", "prefix"),
    [
        ("dit", "transformer."),
        ("queries", "context_encoder.queries."),
        ("connectors", "context_encoder."),
        ("source", "transformer.patch_embedding.source."),
        ("reference", "transformer.patch_embedding.reference."),
        ("lora", "context_encoder.mllm."),
    ],
)
def test_a_part_is_the_parameters_of_its_name(new_editor: NewEditor, part: str, prefix: str) -> None:
    names = [name for name, _ in trainable(new_editor(), (part,))]
    assert names
    assert all(name.startswith(prefix) for name in names)
    if part == "lora":
        assert all("lora_" in name for name in names)
    if part == "connectors":
        assert all("_connector." in name for name in names)


def test_everything_but_the_language_models_own_weights_trains(new_editor: NewEditor) -> None:
    model = new_editor()
    every = {name for name, _ in trainable(model, ("all",))}
    parts = {name for name, _ in trainable(model, ("dit", "queries", "connectors", "lora"))}
    assert every == parts
    frozen = {name for name, _ in model.named_parameters()} - every
    assert frozen
    assert all(name.startswith("context_encoder.mllm.") and "lora_" not in name for name in frozen)


def test_a_part_that_does_not_exist_is_refused_with_those_that_do(new_editor: NewEditor) -> None:
    with pytest.raises(UsageError, match="'vae'") as error:
        trainable(new_editor(), ("dit", "vae"))
    assert "connectors" in error.value.remedy


def stepped(model: KiwiEditModel, stage: StageSettings) -> set[str]:
    """Names of the parameters that one step moves, with a gradient on every parameter."""
    optimizers = Optimizers(model, stage)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizers.step(1.0)
    assert all(parameter.grad is None for parameter in optimizers.parameters)
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("parts", [("all",), ("queries", "connectors", "lora"), ("source",)])
def test_a_stage_moves_what_it_trains_and_nothing_else(
    new_editor: NewEditor, staged: Staged, optimizer: str, parts: tuple[str, ...]
) -> None:
    model = new_editor()
    chosen = {name for name, _ in trainable(model, parts)}
    assert stepped(model, staged(optimizer=optimizer, trainable=parts)) == chosen


def test_muon_takes_the_blocks_matrices_and_each_parameter_has_one_optimiser(
    new_editor: NewEditor, staged: Staged
) -> None:
    model = new_editor()
    optimizers = Optimizers(model, staged(optimizer="muon"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [[id(p) for group in each.param_groups for p in group["params"]] for each in optimizers._all]
    flat = [one for each in held for one in each]
    assert len(flat) == len(set(flat)) == len(optimizers.parameters)
    matrices = {names[one] for one in held[1]}
    assert matrices
    assert all(name.startswith("transformer.blocks.") and name.endswith(".weight") for name in matrices)


def test_the_share_scales_every_groups_own_peak(new_editor: NewEditor, staged: Staged) -> None:
    optimizers = Optimizers(new_editor(), staged(learning_rate=1e-3, mllm_learning_rate=4e-3, muon_learning_rate=0.02))
    for share in (0.5, 0.25):
        optimizers.step(share)
        rates = [group["lr"] for each in optimizers._all for group in each.param_groups]
        assert rates == pytest.approx([1e-3 * share, 4e-3 * share, 0.02 * share])


SCALES = (1.0, 1e-5, 1e30, 1e-38, 1e-42, 0.0)


def test_a_float32_is_its_two_halves_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.cat([torch.randn(20_000, generator=generator) * scale for scale in SCALES])
    weights = torch.cat([weights, torch.tensor([-0.0, torch.finfo(torch.float32).max, torch.inf, -torch.inf])])
    high, low = halves(weights)
    assert (high.dtype, low.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(joined(high, low).view(torch.int32), weights.view(torch.int32))
    nearest = (high.float() - weights).abs() <= (weights.bfloat16().float() - weights).abs()
    assert bool((nearest | weights.isinf() | (weights.abs() > 3e38)).all())


def test_not_a_number_is_shown_as_such_in_the_half_that_the_model_computes_with() -> None:
    """0x7FFFFFFF is what a GPU makes; its upper half, rounded up, would be -0."""
    bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800001, -1, -(2**22)], dtype=torch.int32)
    high, low = halves(bits.view(torch.float32))
    assert bool(high.isnan().all())
    assert bool(joined(high, low).isnan().all())


def lean_steps(parameters: list[nn.Parameter], steps: int = 5, **said: Any) -> list[nn.Parameter]:
    """The parameters after some steps on gradients of bfloat16's precision."""
    generator = torch.Generator().manual_seed(6)
    optimizer = LeanAdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, **said)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16().to(parameter.dtype)
        optimizer.step()
    return parameters


def weights(count: int = 2) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(96, 31, generator=generator)) for _ in range(count)]


def test_weights_in_halves_step_as_float32_weights_to_the_last_bit() -> None:
    whole, parted = lean_steps(weights()), weights()
    masters = Masters(parted)
    assert {parameter.dtype for parameter in parted} == {torch.bfloat16}
    lean_steps(parted, low=masters.low)
    for one, other in zip(whole, parted, strict=True):
        assert torch.equal(one, masters.whole(other))
    masters.settle()
    assert all(torch.equal(one, other) for one, other in zip(whole, parted, strict=True))


def test_working_in_pieces_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lean_steps(weights())
    monkeypatch.setattr(adamw, "PIECE", 256)
    assert all(torch.equal(one, other) for one, other in zip(whole, lean_steps(weights()), strict=True))


def test_the_update_that_is_compiled_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler, which tests/e2e runs: the same arithmetic in another form."""
    plain = lean_steps(weights())
    monkeypatch.setattr(torch, "compile", lambda update, **_: update)
    adamw._update.cache_clear()
    fused = lean_steps(weights(), compiled=True)
    adamw._update.cache_clear()
    for one, other, start in zip(plain, fused, weights(), strict=True):
        assert float(((one - other).norm() / (one - start).norm()).detach()) < 1e-3


def test_bfloat16_weights_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="lose small steps"):
        lean_steps([nn.Parameter(torch.ones(3, dtype=torch.bfloat16))])


@pytest.mark.parametrize("said", [{"moments": "bfloat16"}, {"moments": "float32"}, {"optimizer": "muon"}])
def test_steps_too_small_for_bfloat16_add_up_where_the_model_computes_in_it(
    new_editor: NewEditor, staged: Staged, said: dict[str, Any]
) -> None:
    model = new_editor()
    stage = staged(**{"optimizer": "adamw", "learning_rate": 1e-6, "muon_learning_rate": 1e-6, **said})
    optimizers = Optimizers(model, stage, TrainerSettings(precision="bfloat16"))
    name = "transformer.blocks.0.attn1.to_q.weight"
    parameter = optimizers.named[name]
    assert parameter.dtype == torch.bfloat16
    before, shown = optimizers.weights()[name].clone(), parameter.detach().clone()
    for _ in range(4):
        for each in optimizers.parameters:
            each.grad = torch.ones_like(each)
        optimizers.step(1.0)
    after = optimizers.weights()[name]
    assert float((after != before).float().mean()) > 0.99
    assert float((parameter.detach() != shown).float().mean()) < 0.2
    optimizers.settle()
    assert parameter.dtype == torch.float32
    assert torch.equal(parameter.detach(), after)


def test_averages_are_of_the_float32_weights_and_not_of_what_the_model_computes_with(
    new_editor: NewEditor, staged: Staged
) -> None:
    optimizers = Optimizers(new_editor(), staged(optimizer="adamw"), TrainerSettings(precision="bfloat16"))
    average = Averaged(optimizers.named.items(), 0.5, optimizers.masters.whole)
    name = "transformer.blocks.0.attn1.to_q.weight"
    parameter, start = optimizers.named[name], optimizers.weights()[name].clone()
    assert parameter.dtype == torch.bfloat16
    assert torch.equal(average.tensors[name], start)
    moved = start * (1 + 1e-5)
    optimizers.masters.put(parameter, moved)
    average.update(100)
    assert torch.equal(average.tensors[name], start.lerp(moved, 0.5))


@pytest.mark.parametrize(("moments", "device"), [("float32", "meta"), ("bfloat16", "cpu")])
def test_a_state_to_resume_counts_its_steps_where_the_optimiser_reads_them(
    moments: str, device: str, new_editor: NewEditor, staged: Staged
) -> None:
    """The device "meta" stands for a GPU: torch's fused AdamW reads the count there, ours on the CPU."""
    optimizers = Optimizers(new_editor().to("meta"), staged(optimizer="adamw", moments=moments))
    name = "transformer.proj_out.weight"
    state = optimizers.blank([f"{name}/step", f"{name}/exp_avg"])
    assert state[f"{name}/step"].device.type == device
    assert state[f"{name}/exp_avg"].device.type == "meta"


def test_clipping_where_nothing_has_a_gradient_gives_a_norm_of_zero(new_editor: NewEditor, staged: Staged) -> None:
    for precision in ("float32", "bfloat16"):
        optimizers = Optimizers(new_editor(), staged(), TrainerSettings(precision=precision))
        assert float(optimizers.clip(0.5)) == 0.0


def test_clipping_gradients_of_two_precisions_gives_their_norm_in_float32(
    new_editor: NewEditor, staged: Staged
) -> None:
    model = new_editor()
    optimizers = Optimizers(model, staged(optimizer="adamw"), TrainerSettings(precision="bfloat16"))
    generator = torch.Generator().manual_seed(9)
    for each in optimizers.parameters:
        each.grad = torch.randn(each.shape, generator=generator).to(each.dtype)
    assert {each.dtype for each in optimizers.parameters} == {torch.float32, torch.bfloat16}
    expected = torch.cat([each.grad.double().flatten() for each in optimizers.parameters]).norm()  # type: ignore[union-attr]
    assert float(optimizers.clip(0.5)) == pytest.approx(float(expected), rel=1e-5)
    clipped = torch.cat([each.grad.double().flatten() for each in optimizers.parameters]).norm()  # type: ignore[union-attr]
    assert float(clipped) == pytest.approx(0.5, rel=1e-2)
