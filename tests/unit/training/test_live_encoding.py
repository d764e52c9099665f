"""Training from the cache against training that encodes its clips anew in every step."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kiwi.configuration import RunConfiguration, StageSettings
from kiwi.dataset.reader import read_split
from kiwi.model.editor import KiwiEditModel
from kiwi.tracking import silent
from kiwi.training import latents
from kiwi.training.loop import train
from kiwi.training.mixture import Batch, Mixture
from kiwi.training.views import views

STEPS = 5
NEAR = 1e-4  # of the loss; 9e-6 was the most over these steps. float16 rounds a latent by at most 5e-4 of itself


class LiveMixture:
    """Draws what a cache's mixture draws, and encodes the drawn samples' clips when they are drawn.

    Args:
        rounded: round to float16 as the cache does.
    """

    def __init__(self, cached: Mixture, model: KiwiEditModel, configuration: RunConfiguration, rounded: bool) -> None:
        self._cached, self._model, self._rounded = cached, model, rounded
        self.encoded = 0
        view, dataset = views(configuration)[0], Path(configuration.workspace) / "dataset"
        rows = read_split(dataset, "train", latents.COLUMNS).to_dicts()
        self._samples: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
        for own in latents._samples(configuration, view, model, dataset, rows, first_frames=False):
            for sample in own:
                self._samples[sample.bucket[:4]].append(sample)
        self.plan, self.steps, self.size, self.tokens = cached.plan, cached.steps, cached.size, cached.tokens

    def batch(self, kind: Any, place: int, before: int, part: slice = slice(None)) -> Batch:
        drawn, bucket = self._cached.batch(kind, place, before, part), self._cached.buckets[kind][place]
        samples = self._samples[kind, bucket.frames, bucket.height, bucket.width]
        tensors, _ = latents.encode_live(self._model, samples)  # in the cache's batches, whose products sum alike
        self.encoded += 1
        size = self.size(kind, place)
        numbers = list(range(before * size, (before + 1) * size))[part]
        places = [self._cached._pick(bucket, kind, place, number) for number in numbers]
        assert [samples[each].iid for each in places] == drawn.iids
        live = {name: tensor[places].clone() for name, tensor in tensors.items()}
        if self._rounded:
            live = {name: tensor.half().float() for name, tensor in live.items()}
        return dataclasses.replace(drawn, **live)


@pytest.fixture(scope="module")
def losses(
    workspace: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory, new_editor: Callable[[], KiwiEditModel],
    configured: Callable[..., RunConfiguration], staged: Callable[..., StageSettings],
) -> Callable[[str], list[float]]:  # fmt: skip
    """losses(how): of a few steps from the "cache", or "live" at float32, or "rounded" as the cache rounds."""

    @functools.cache
    def trained(how: str) -> list[float]:
        model, stage = new_editor(), staged(steps=STEPS, checkpoint_every=100)
        mixture: Any = Mixture(cache, stage, model.context_encoder, seed=3)
        if how != "cache":
            mixture = LiveMixture(mixture, model, configured(workspace), rounded=how == "rounded")
        progress = train(model, mixture, stage, 3, tmp_path_factory.mktemp(how), silent())
        assert how == "cache" or mixture.encoded == STEPS
        assert len({kind for _, _, kind in progress.losses}) > 1
        return [loss for _, loss, _ in progress.losses]

    return trained


def test_training_from_the_cache_has_the_losses_of_encoding_live_within_a_ten_thousandth(
    losses: Callable[[str], list[float]],
) -> None:
    cached, live = losses("cache"), losses("live")
    assert cached == pytest.approx(live, rel=NEAR)
    assert cached != live  # the cache's rounding is seen, so a live side that read the cache would be found out


def test_the_cache_differs_from_live_encoding_by_float16_rounding_alone(losses: Callable[[str], list[float]]) -> None:
    assert losses("rounded") == losses("cache")


def test_the_cache_holds_what_is_encoded_live_to_half_a_unit_of_float16(
    workspace: Path, cache: Path, new_editor: Callable[[], KiwiEditModel], configured: Callable[..., RunConfiguration],
    staged: Callable[..., StageSettings],
) -> None:  # fmt: skip
    model, stage = new_editor(), staged()
    mixture = Mixture(cache, stage, model.context_encoder, seed=3)
    live = LiveMixture(mixture, model, configured(workspace), rounded=False)
    kept, exact = mixture.batch("reference", 0, 0), live.batch("reference", 0, 0)
    for name in ("source", "target", "vision", "reference", "reference_vision"):
        torch.testing.assert_close(getattr(kept, name), getattr(exact, name), rtol=2**-11, atol=2**-24)
