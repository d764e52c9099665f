"""The CLIP deduplicator: features of a tiny random model through the same code, and the exact comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as within
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from kiwi.configuration import WeightsSettings
from kiwi.curation.curators import nearest
from kiwi.curation.curators.clip_deduplicate import ClipDeduplicator
from kiwi.curation.curators.nearest import FingerprintError, TorchArithmetic, Vectors, keep_first
from kiwi.curation.curators.weights import WeightsError
from kiwi.errors import UsageError

Prints = list[bytes]


def prints(vectors: NDArray[np.floating]) -> Prints:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return [vector.tobytes() for vector in unit.astype("<f2")]


def crowd(rows: int, width: int, seed: int, near: float = 0.3) -> Prints:
    """Vectors as alike as pictures' are, some of them others with noise, at cosines on both sides of 0.95.

    Which rows resemble which is the same for every seed, so that rows may agree in several aspects.
    """
    rng, likeness = np.random.default_rng(seed), np.random.default_rng(0)
    vectors = rng.normal(size=(rows, width)) + rng.normal(size=width)
    for row in np.flatnonzero(likeness.random(rows) < near):
        noise = rng.choice([0.0, 0.0, 0.1, 0.3, 0.35, 0.5]) * np.sqrt(2)
        vectors[row] = vectors[likeness.integers(0, max(row, 1))] + noise * rng.normal(size=width)
    return prints(vectors)


def brute_force(aspects: list[Prints], similarity: float) -> list[int]:
    """The definition, row by row, in float64: the earliest kept row that agrees in every aspect."""
    values = [np.frombuffer(b"".join(each), "<f2").reshape(len(each), -1).astype(np.float64) for each in aspects]
    kept: list[int] = []
    repeats = []
    for row in range(len(aspects[0])):
        agree = np.ones(len(kept), bool)
        for each in values:
            lengths = np.sqrt((each[kept] ** 2).sum(1) * (each[row] ** 2).sum())
            agree &= each[kept] @ each[row] >= similarity * lengths
        repeats.append(kept[int(np.argmax(agree))] if agree.any() else -1)
        if repeats[-1] < 0:
            kept.append(row)
    return repeats


def small_blocks(monkeypatch: pytest.MonkeyPatch, block: int, strip: int, dense: int) -> None:
    """Makes few rows into many blocks."""
    monkeypatch.setattr(nearest, "LARGEST_BLOCK", block)
    monkeypatch.setattr(nearest, "SMALLEST_BLOCK", min(block, nearest.SMALLEST_BLOCK))
    monkeypatch.setattr(nearest, "STRIP", strip)
    monkeypatch.setattr(nearest, "DENSE", dense)


@pytest.mark.parametrize("similarity", [0.0, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("aspects", [1, 2, 3])
def test_it_finds_what_brute_force_finds(similarity: float, aspects: int) -> None:
    rows = [crowd(700, 24, seed, near=0.6) for seed in range(aspects)]
    found = keep_first(rows, similarity, memory_gb=1.0).tolist()
    assert found == brute_force(rows, similarity)
    assert 0 < sum(row >= 0 for row in found) < 700


@pytest.mark.parametrize(("block", "strip", "dense"), [(8, 3, 0), (16, 16, 10**9), (64, 8, 5), (256, 100, 0)])
def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, block: int, strip: int, dense: int) -> None:
    rows = [crowd(500, 24, 0, near=0.6), crowd(500, 24, 1, near=0.95)]
    expected = keep_first(rows, 0.9, memory_gb=1.0).tolist()
    small_blocks(monkeypatch, block, strip, dense)
    assert keep_first(rows, 0.9, memory_gb=1.0).tolist() == expected == brute_force(rows, 0.9)


def test_memory_that_holds_no_kept_rows_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [crowd(600, 32, 4)]
    expected = keep_first(rows, 0.95, memory_gb=1.0).tolist()
    monkeypatch.setattr(nearest, "LARGEST_BLOCK", 64)
    tight = nearest.working_bytes(64, 32) / 1e9
    formed: list[int] = []
    unit = Vectors.unit
    monkeypatch.setattr(Vectors, "unit", lambda self, index: formed.append(len(index)) or unit(self, index))
    assert keep_first(rows, 0.95, memory_gb=tight).tolist() == expected
    assert sum(formed) > 1200  # kept rows were formed again and again, not held


def test_an_accelerators_arithmetic_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch path that runs on a GPU, here on torch's CPU device: this test needs no GPU, and shows no speed."""
    small_blocks(monkeypatch, 64, 16, 4)
    rows = [crowd(300, 24, 0, near=0.6), crowd(300, 24, 1, near=0.95)]
    used: list[str] = []
    start = TorchArithmetic.__init__
    monkeypatch.setattr(TorchArithmetic, "__init__", lambda self, device: used.append(device) or start(self, device))
    assert keep_first(rows, 0.9, 1.0, device="cpu:0").tolist() == brute_force(rows, 0.9)
    assert used == ["cpu:0"]


@within(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_of_any_rows_the_kept_ones_differ_and_the_dropped_ones_repeat_a_kept_one(
    seed: int, count: int, width: int, similarity: float
) -> None:
    rows = crowd(count, width, seed)
    found = keep_first([rows], similarity, memory_gb=0.1)
    assert found.tolist() == brute_force([rows], similarity)
    kept = np.flatnonzero(found < 0)
    assert found[0] == -1
    assert set(found[found >= 0]) <= set(kept.tolist())


def test_a_row_that_repeats_only_a_dropped_row_stays() -> None:
    """SemDeDup would drop it too. Three vectors, 15 degrees apart in a row; 20 degrees are the same."""
    angles = np.radians([0.0, 15.0, 30.0])
    rows = prints(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert keep_first([rows], float(np.cos(np.radians(20))), 0.1).tolist() == [-1, 0, -1]


def test_the_first_kept_row_is_named_where_several_agree() -> None:
    angles = np.radians([0.0, 30.0, 15.0])
    rows = prints(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert keep_first([rows], float(np.cos(np.radians(20))), 0.1).tolist() == [-1, -1, 0]


def on_the_threshold() -> Prints:
    """Three vectors: the second's cosine with the first is exactly 0.5, the third's less by under 3e-6, which float32
    products of 512 numbers leave open."""
    width = 512
    signs = np.random.default_rng(0).choice([-1.0, 1.0], width)
    half = signs.copy()
    half[: width // 4] *= -1  # a quarter turned: 1 - 2/4
    rows = [(vector / np.sqrt(width)).astype("<f2") for vector in (signs, half, half)]
    rows[2][-1] = np.nextafter(rows[2][-1], np.float16(0))
    one, other = (row.astype(np.float64) for row in (rows[0], rows[2]))
    assert 0 < 0.5 - float(one @ other / np.sqrt((one @ one) * (other @ other))) < 3e-6
    return [row.tobytes() for row in rows]


def test_cosines_that_lie_on_the_threshold_are_decided_exactly() -> None:
    first, half, less = on_the_threshold()
    assert keep_first([[first, half]], 0.5, 0.1).tolist() == [-1, 0]
    assert keep_first([[first, less]], 0.5, 0.1).tolist() == [-1, -1]


@pytest.mark.parametrize("dense", [0, 10**9])
def test_a_second_aspect_on_the_threshold_is_decided_exactly_however_many_candidates_there_are(
    monkeypatch: pytest.MonkeyPatch, dense: int
) -> None:
    monkeypatch.setattr(nearest, "DENSE", dense)
    first, half, less = on_the_threshold()
    alike = crowd(1, 24, 0) * 2
    assert keep_first([alike, [first, half]], 0.5, 0.1).tolist() == [-1, 0]
    assert keep_first([alike, [first, less]], 0.5, 0.1).tolist() == [-1, -1]


def test_equal_vectors_repeat_each_other_at_a_similarity_of_one() -> None:
    rows = crowd(50, 512, 3, near=0.0)
    assert keep_first([rows + rows], 1.0, 0.1).tolist() == [-1] * 50 + list(range(50))


def test_many_equal_rows_are_one() -> None:
    rows = crowd(1, 64, 3) * 5000
    assert keep_first([rows], 1.0, 0.2).tolist() == [-1] + [0] * 4999


def test_no_rows_repeat_nothing() -> None:
    assert keep_first([[]], 0.9, 1.0).tolist() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row[:-2], "the fingerprint of row 2 has 46 bytes, that of row 0 48"),
        (lambda row: b"\x00" * 48, "the fingerprint of row 2 has the length 0, not 1"),
        (lambda row: np.full(24, np.nan, "<f2").tobytes(), "the length nan"),
        (lambda row: np.full(24, 9.0, "<f2").tobytes(), "not 1"),
    ],
)
def test_fingerprints_of_something_else_are_refused_by_row(change: object, said: str) -> None:
    rows = crowd(4, 24, 0)
    rows[2] = change(rows[2])  # type: ignore[operator]
    with pytest.raises(FingerprintError, match=said):
        keep_first([rows], 0.9, 1.0)


def test_aspects_of_different_lengths_are_refused() -> None:
    with pytest.raises(FingerprintError, match="different numbers of rows: 4, 3"):
        keep_first([crowd(4, 24, 0), crowd(3, 24, 0)], 0.9, 1.0)


def test_too_little_memory_says_how_much_it_takes() -> None:
    with pytest.raises(UsageError, match=r"curation\.duplicate_memory: 0\.001 GB is too little") as caught:
        keep_first([crowd(4, 512, 0, near=0.0)], 0.9, 0.001)
    assert keep_first([crowd(4, 512, 0, near=0.0)], 0.9, float(caught.value.remedy.split()[-1])).tolist() == [-1] * 4


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**size, "image_size": 64, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config={**size, "vocab_size": 64}, vision_config=vision, projection_dim=24))
    for name, tensor in model.named_parameters():
        if tensor.dim() > 1 and "embedding" not in name:  # large enough that pictures keep apart
            torch.nn.init.normal_(tensor, std=1 / tensor[0].numel() ** 0.5)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def deduplicator(folder: Path, **changes: object) -> ClipDeduplicator:
    plain = {"model": str(folder), "device": "cpu", "dtype": "float32", "batch": 4}
    return ClipDeduplicator.from_settings(WeightsSettings.model_validate({**plain, **changes}), 0.999, 0.1)


def picture(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return coarse.repeat(rng.integers(11, 20), axis=0).repeat(rng.integers(11, 20), axis=1)


def test_a_fingerprint_is_a_float16_vector_of_length_one_for_images_of_any_size(saved: Path) -> None:
    found = list(deduplicator(saved).fingerprints(picture(seed) for seed in range(6)))
    assert [len(each) for each in found] == [48] * 6
    lengths = [np.linalg.norm(np.frombuffer(each, "<f2").astype(np.float64)) for each in found]
    assert np.allclose(lengths, 1, atol=1e-3)
    assert len(set(found)) == 6


def test_a_fingerprint_does_not_depend_on_how_many_came_with_it(saved: Path) -> None:
    clip = deduplicator(saved)
    pictures = [picture(seed) for seed in range(6)]
    assert list(clip.fingerprints(pictures)) == [next(clip.fingerprints([each])) for each in pictures]


def test_the_size_of_a_batch_moves_fingerprints_by_rounding_only(saved: Path) -> None:
    pictures = [picture(seed) for seed in range(5)]
    one, other = (list(deduplicator(saved, batch=batch).fingerprints(pictures)) for batch in (1, 4))
    apart = np.frombuffer(b"".join(one), "<f2").astype(float) - np.frombuffer(b"".join(other), "<f2").astype(float)
    assert np.abs(apart).max() < 1e-3


def test_the_same_picture_again_is_dropped_and_others_stay(saved: Path) -> None:
    clip = deduplicator(saved)
    pictures = [picture(0), picture(1), picture(2), picture(1), picture(0)]
    found = clip.keep_first([list(clip.fingerprints(pictures))])
    assert found.tolist() == [-1, -1, -1, 1, 0]


def test_comparing_needs_no_weights(tmp_path: Path) -> None:
    rows = crowd(20, 24, 0, near=0.0)
    assert deduplicator(tmp_path / "absent").keep_first([rows + rows]).tolist() == [-1] * 20 + list(range(20))


def test_weights_that_cannot_be_had_are_told_at_the_first_image(tmp_path: Path) -> None:
    stream = deduplicator(tmp_path / "absent").fingerprints([picture(0)])
    with pytest.raises(WeightsError, match=r"curation\.clip\.model: there is no folder"):
        next(stream)


def test_running_out_of_memory_names_what_to_lower(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors are made here: a test cannot exhaust a machine."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    clip = deduplicator(saved)
    monkeypatch.setattr(clip.loaded().model, "get_image_features", full)
    with pytest.raises(WeightsError) as caught:
        next(clip.fingerprints([picture(0)]))
    assert caught.value.remedy == "lower curation.clip.batch (now 4)"
    monkeypatch.setattr(nearest.NumpyArithmetic, "product", full)
    with pytest.raises(WeightsError) as caught:
        clip.keep_first([crowd(20, 24, 0)])
    assert caught.value.remedy == "lower curation.duplicate_memory (now 0.1 GB)"
