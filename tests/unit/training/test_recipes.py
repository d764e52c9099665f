"""The recipes: what they say, that each of their stages trains, and the data and terms that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kiwi.configuration import RunConfiguration, StageSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.model.inputs import frames_to_tensor
from kiwi.presets.recipes import TINY, Scale, recipe_stages
from kiwi.tracking import silent
from kiwi.training import cache_latents, train_stage
from kiwi.training.augmentation import shrunk_references
from kiwi.training.loop import train
from kiwi.training.loss import losses, reference_unlikeness, temporal_error
from kiwi.training.mixture import Mixture, training_noise

NewEditor = Callable[[], KiwiEditModel]
Staged = Callable[..., StageSettings]
Configured = Callable[..., RunConfiguration]
Publish = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(("recipe", "reference_only"), [("paper", False), ("released", False), ("released", True)])
def test_every_stage_of_a_recipe_trains_at_tiny_size(
    tmp_path: Path, configured: Configured, publish: Publish, recipe: Any, reference_only: bool
) -> None:
    publish(tmp_path, "images", "quadruplets")
    scale = Scale(side=1 / 30, frames=5, steps=1e-9, batch=2, multiple=8, token_side=None)
    stages = recipe_stages(recipe, scale, reference_only=reference_only)
    configuration = configured(tmp_path, *stages)
    for stage in stages:
        result = train_stage(configuration, stage.name, silent())
        assert result["steps"] == 1
        assert {kind for _, _, kind in result["losses"]} <= set(stage.mix)
    sizes = [(stage.size, stage.frames) for stage in stages]
    assert sizes == [(32, 1), (16, 5), (32, 5), (32, 5)]
    assert len(cache_latents(configuration, silent())["views"]) == 3


def test_the_recipes_are_those_of_the_text_and_of_the_scripts() -> None:
    paper, released = recipe_stages("paper"), recipe_stages("released")
    assert {stage.learning_rate for stage in paper} == {2e-5}
    assert [stage.learning_rate for stage in released] == [1e-5, 1e-5, 1e-5, 5e-6]
    assert [stage.steps for stage in paper] == [12_000, 10_000, 10_000, 10_000]
    assert [stage.steps for stage in released] == [30_000, 20_000, 20_000, 15_000]
    assert (released[0].size, released[0].frames) == (1024, 1)
    assert [stage.reference_scale for stage in released] == [None, None, None, (0.7, 1.0)]
    assert recipe_stages("released", reference_only=True)[-1].mix == {"reference": 1.0}
    assert [stage.steps for stage in recipe_stages("paper", TINY)] == [2, 2, 2, 2]


def test_batches_are_filled_to_a_number_of_tokens(cache: Path, new_editor: NewEditor, staged: Staged) -> None:
    encoder = new_editor().context_encoder
    drawing = Mixture(cache, staged(batch_tokens=100), encoder, 0, least=2)
    sizes = {kind: [drawing.size(kind, place) for place in range(len(b))] for kind, b in drawing.buckets.items()}
    assert drawing.tokens("image", 0) == 16
    assert sizes == {"image": [6], "reference": [2], "video": [100 // 36, 100 // 32]}
    for kind, places in sizes.items():
        for place, size in enumerate(places):
            assert len(drawing.batch(kind, place, 0).iids) == size
    assert len(Mixture(cache, staged(batch_tokens=1), encoder, 0, least=2).batch("video", 0, 0).iids) == 2


def test_noise_of_large_batches_is_each_samples_own_and_a_ranks_part_of_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kiwi.training import mixture

    for most in (mixture.NOISE_AT_ONCE, 1):
        monkeypatch.setattr(mixture, "NOISE_AT_ONCE", most)
        noise, levels = training_noise((6, 3, 2), (1, 2))
        part, own = training_noise((6, 3, 2), (1, 2), slice(2, 5))
        assert torch.equal(noise[2:5], part)
        assert torch.equal(levels[2:5], own)
        assert len({float(value) for value in noise[:, 0, 0]}) == 6


def test_references_are_shown_at_random_scales_on_white_and_again_the_same() -> None:
    canvas = torch.zeros(2, 40, 40, 3, dtype=torch.uint8)
    shrunk = shrunk_references(canvas, (0.5, 0.9), (1,), [0, 1])
    assert torch.equal(shrunk, shrunk_references(canvas, (0.5, 0.9), (1,), [0, 1]))
    sides = [(image == 0).all(dim=2).sum(dim=0).amax().item() for image in shrunk]
    assert all(20 <= side <= 36 for side in sides)
    assert sides[0] != sides[1]
    assert bool((shrunk[:, 0] == 255).all())
    assert torch.equal(shrunk_references(canvas, (1.0, 1.0), (1,), [0, 1]), canvas)


def test_a_stage_trains_on_references_that_are_encoded_as_they_are_drawn(
    tmp_path: Path, configured: Configured, publish: Publish, new_editor: NewEditor, staged: Staged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from kiwi.training import loop

    publish(tmp_path, "quadruplets")
    stage = staged(steps=2, mix={"reference": 1.0}, batch_size=2, reference_scale=(0.5, 0.6))
    path = Path(cache_latents(configured(tmp_path, stage), silent())["path"])
    model, seen = new_editor(), []
    monkeypatch.setattr(
        loop, "losses", lambda model, batch, *rest: (seen.append(batch), losses(model, batch, *rest))[1]
    )
    mixture = Mixture(path, stage, model.context_encoder, 0)
    train(model, mixture, stage, 0, tmp_path / "stage", silent())
    drawn = [mixture.batch(*step) for step in mixture.plan(2)]
    for batch, given in zip(drawn, seen, strict=True):
        pixels = batch.reference_pixels
        assert pixels is not None
        assert bool((pixels[:, 0] == 255).all())  # the margin that a scale of 0.6 at most leaves
        encoded = model.codec.encode(frames_to_tensor(pixels[:, None].numpy()))
        assert torch.equal(given.reference, encoded)
        assert not torch.allclose(given.reference, batch.reference, atol=0.1)


def test_the_terms_are_zero_at_the_target_and_off_by_default(
    cache: Path, new_editor: NewEditor, staged: Staged
) -> None:
    model = new_editor()
    batch = Mixture(cache, staged(), model.context_encoder, 0).batch("reference", 0, 0)
    assert batch.reference is not None
    assert float(temporal_error(batch.target, batch.target).abs().max()) == 0
    assert float(temporal_error(batch.target.flip(2), batch.target).min()) > 0
    placed = batch.target.clone()
    placed[:, :, :1] = batch.reference
    assert float(reference_unlikeness(placed, batch.reference).abs().max()) < 1e-5
    assert float(reference_unlikeness(-placed[:, :, :1], batch.reference).min()) > 0.1
    noise, levels = training_noise(batch.target.shape, (0,))
    plain = losses(model, batch, noise, levels, staged()).loss
    for name in ("reference_similarity", "temporal_consistency"):
        more = losses(model, batch, noise, levels, staged(**{name: 1.0})).loss
        assert float(more) > float(plain)


def test_the_bell_weighs_the_middle_levels_most(cache: Path, new_editor: NewEditor, staged: Staged) -> None:
    model = new_editor()
    batch = Mixture(cache, staged(), model.context_encoder, 0).batch("video", 0, 0)
    noise, _ = training_noise(batch.target.shape, (0,))
    shares = []
    for level in (0, 830):  # sigma 1.0, about 0.5
        levels = torch.full((len(batch.iids),), level)
        found = [losses(model, batch, noise, levels, staged(weighting=w)).loss.item() for w in ("bell", "uniform")]
        shares.append(found[0] / found[1])
    assert shares[0] == pytest.approx(0, abs=1e-6)
    assert shares[1] == pytest.approx(2.08, abs=0.02)
