"""What a step trains on: a function of the seed, the stage and the step."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kiwi.configuration import StageSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.training.errors import TrainingError
from kiwi.training.mixture import Batch, Mixture, training_noise

Staged = Callable[..., StageSettings]


@pytest.fixture(scope="module")
def editor(new_editor: Callable[[], KiwiEditModel]) -> KiwiEditModel:
    return new_editor()


@pytest.fixture
def mixture(cache: Path, staged: Staged, editor: KiwiEditModel) -> Callable[..., Mixture]:
    def make(seed: int = 0, folder: Path = cache, **stage: object) -> Mixture:
        return Mixture(folder, staged(**stage), editor.context_encoder, seed)

    return make


def same(one: Batch, other: Batch) -> bool:
    return (
        one.iids == other.iids
        and torch.equal(one.source, other.source)
        and torch.equal(one.target, other.target)
        and torch.equal(one.vision, other.vision)
        and torch.equal(one.prompts.input_ids, other.prompts.input_ids)
    )


def test_plan_and_batches_are_a_function_of_the_seed(mixture: Callable[..., Mixture]) -> None:
    first, again, other = mixture(1), mixture(1), mixture(2)
    plan = first.plan(20)
    assert again.plan(20) == plan
    assert other.plan(20) != plan
    late = again.batch(*plan[-1])  # drawn out of turn, as a resumed run draws it
    batches = [first.batch(*step) for step in plan]
    assert same(batches[-1], late)
    assert [again.batch(*step).iids for step in plan] == [batch.iids for batch in batches]
    assert [other.batch(*step).iids for step in plan] != [batch.iids for batch in batches]


def test_a_stage_of_another_name_draws_otherwise(mixture: Callable[..., Mixture]) -> None:
    assert mixture(name="stage1").plan(20) != mixture(name="stage2").plan(20)


def test_a_longer_plan_starts_as_the_shorter_one(mixture: Callable[..., Mixture]) -> None:
    assert mixture().plan(30)[:12] == mixture().plan(12)


@pytest.mark.parametrize("size", [1, 4, 7])
def test_an_epoch_visits_every_sample_once(mixture: Callable[..., Mixture], size: int) -> None:
    drawing = mixture(mix={"video": 1.0}, batch_size=size)
    for place, bucket in enumerate(drawing.buckets["video"]):
        count = len(bucket.rows)
        sources = bucket.take(list(range(count)))["source"].float()
        drawn: list[int] = []
        for before in range(3 * count):  # three batches' worth of epochs and more
            batch = drawing.batch("video", place, before)
            assert len(batch.iids) == size
            for own in batch.source:  # windows of one clip have one iid, so samples are told by their latents
                (index,) = torch.nonzero((sources == own).flatten(1).all(1)).flatten().tolist()
                drawn.append(index)
        epochs = [drawn[start : start + count] for start in range(0, 3 * count, count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert count <= 2 or epochs[0] != epochs[1] or epochs[1] != epochs[2]  # shuffled anew


def test_kinds_come_in_the_shares_of_the_mix_and_buckets_in_those_of_their_samples(
    mixture: Callable[..., Mixture],
) -> None:
    drawing = mixture(mix={"image": 0.2, "video": 0.8})
    plan = drawing.plan(2000)
    kinds = Counter(kind for kind, _, _ in plan)
    assert set(kinds) == {"image", "video"}
    assert 0.76 < kinds["video"] / 2000 < 0.84
    sizes = [len(bucket.rows) for bucket in drawing.buckets["video"]]
    places = Counter(place for kind, place, _ in plan if kind == "video")
    assert places[0] / kinds["video"] == pytest.approx(sizes[0] / sum(sizes), abs=0.05)


def test_a_plan_counts_the_batches_drawn_of_each_bucket(mixture: Callable[..., Mixture]) -> None:
    counted: Counter[tuple[str, int]] = Counter()
    for kind, place, before in mixture().plan(60):
        assert before == counted[kind, place]
        counted[kind, place] += 1
    assert len(counted) == 4


def test_a_batch_has_the_tensors_and_the_prompts_of_its_samples(
    mixture: Callable[..., Mixture], editor: KiwiEditModel
) -> None:
    drawing = mixture(batch_size=3)
    for kind, bucket in ((kind, buckets[0]) for kind, buckets in drawing.buckets.items()):
        batch = drawing.batch(kind, 0, 0)
        assert batch.kind == batch.prompts.mode == kind
        assert (batch.reference is not None, batch.reference_vision is not None) == (kind == "reference",) * 2
        assert batch.source.dtype == batch.target.dtype == batch.vision.dtype == torch.float32
        said = dict(bucket.rows)
        for iid, ids in zip(batch.iids, batch.prompts.input_ids, strict=True):
            assert said[iid].replace(" ", "") in editor.context_encoder.tokenizer.decode(ids).replace(" ", "")


def test_a_kind_that_the_dataset_lacks_is_said_and_the_others_take_its_steps(
    mixture: Callable[..., Mixture], cache: Path, tmp_path: Path
) -> None:
    poorer = without(cache, tmp_path, "reference")
    drawing = mixture(folder=poorer)
    assert drawing.missing == ["reference"]
    assert {kind for kind, _, _ in drawing.plan(50)} == {"image", "video"}
    assert mixture().missing == []


def test_a_dataset_with_none_of_a_stages_kinds_is_refused(
    mixture: Callable[..., Mixture], cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="stage1 trains on reference"):
        mixture(folder=without(cache, tmp_path, "reference"), mix={"reference": 1.0})


def without(cache: Path, folder: Path, kind: str) -> Path:
    """A copy of the cache that lacks a kind."""
    poorer = folder / "poorer"
    shutil.copytree(cache, poorer)
    said = json.loads((poorer / "cache.json").read_text())
    said["buckets"] = [bucket for bucket in said["buckets"] if bucket["kind"] != kind]
    (poorer / "cache.json").write_text(json.dumps(said))
    return poorer


def test_passes_over_the_data_bound_the_steps(mixture: Callable[..., Mixture]) -> None:
    free = mixture(steps=1000, mix={"image": 1.0}, batch_size=2)
    assert (free.samples, free.steps()) == (5, 1000)
    bound = mixture(steps=1000, mix={"image": 1.0}, batch_size=2, max_epochs=3.0)
    assert bound.steps() == 8  # 15 samples in pairs
    assert mixture(steps=1000, mix={"image": 1.0}, batch_size=16, max_epochs=0.1).steps() == 1


@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign", "short", "flipped"])
def test_a_damaged_cache_is_one_clear_line(
    mixture: Callable[..., Mixture], cache: Path, tmp_path: Path, damage: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(cache, broken)
    file = broken / "image-1x32x32.00000.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    elif damage == "foreign":
        file.write_bytes(b"no tensors here")
    elif damage == "short":
        said = json.loads((broken / "chunks" / "00000.json").read_text())
        said["parts"][0]["rows"].append(["one", "more"])
        (broken / "chunks" / "00000.json").write_text(json.dumps(said))
    else:
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    with pytest.raises(TrainingError, match="the latent cache is damaged") as error:
        mixture(folder=broken, mix={"image": 1.0}, batch_size=5).batch("image", 0, 0)
    assert str(file) in error.value.message
    assert str(broken) in error.value.remedy


def test_noise_and_levels_are_a_function_of_their_seed() -> None:
    shape = torch.Size((64, 4, 2, 2, 2))
    noise, levels = training_noise(shape, (0, 3, 7))
    again, same_levels = training_noise(shape, (0, 3, 7))
    assert torch.equal(noise, again)
    assert torch.equal(levels, same_levels)
    assert not torch.equal(noise, training_noise(shape, (0, 3, 8))[0])
    assert noise.dtype == torch.float32
    assert abs(float(noise.mean())) < 0.1
    assert 0.9 < float(noise.std()) < 1.1
    assert 0 <= int(levels.min()) < 250
    assert 750 < int(levels.max()) <= 999
