"""Editing clips of any size and length with an editor of random weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kiwi.configuration import ModelSettings
from kiwi.editing.errors import EditError
from kiwi.editing.geometry import blend, causal_length, windows
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.training.start import initial_model


@pytest.fixture(scope="module")
def pipeline() -> KiwiEditPipeline:
    return KiwiEditPipeline(initial_model(ModelSettings()))


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(9, 64, 64), (1, 64, 64), (2, 50, 90), (21, 120, 68)])
def test_an_edit_has_the_size_and_length_of_its_input(pipeline: KiwiEditPipeline, shape: tuple[int, int, int]) -> None:
    (edit,) = pipeline.edit_clips([clip(*shape)], ["Remove the red circle."], num_inference_steps=1)
    assert edit.shape == (*shape, 3)
    assert edit.dtype == np.uint8


def test_the_same_seed_gives_the_same_edit_alone_and_in_a_batch(pipeline: KiwiEditPipeline) -> None:
    first, second = clip(9, 64, 64, 1), clip(9, 64, 64, 2)
    words = ["Make the red circle blue.", "Remove the yellow square."]
    together = pipeline.edit_clips([first, second], words, num_inference_steps=2, seed=5)
    alone = pipeline.edit_clips([second], words[1:], num_inference_steps=2, seed=5)[0]
    assert np.abs(together[1].astype(int) - alone).max() <= 1
    other = pipeline.edit_clips([second], words[1:], num_inference_steps=2, seed=6)[0]
    assert np.abs(other.astype(int) - alone).mean() > 1


def test_requests_with_and_without_references_mix(pipeline: KiwiEditPipeline) -> None:
    edits = pipeline.edit_clips(
        [clip(9, 64, 64), clip(5, 48, 96)], ["Use it.", "Remove it."], [clip(1, 30, 20)[0], None], num_inference_steps=1
    )
    assert [edit.shape[:3] for edit in edits] == [(9, 64, 64), (5, 48, 96)]


@pytest.mark.parametrize(
    ("video", "words", "message"),
    [
        (np.zeros((0, 64, 64, 3), np.uint8), "Remove it.", "request 0 is no clip"),
        (np.zeros((9, 64, 64), np.uint8), "Remove it.", "request 0 is no clip"),
        (np.zeros((9, 64, 64, 3), np.uint8), "  ", "instruction of request 0 is empty"),
    ],
)
def test_a_bad_request_is_refused_with_its_number(
    pipeline: KiwiEditPipeline, video: np.ndarray, words: str, message: str
) -> None:
    with pytest.raises(EditError, match=f"{message}"):
        pipeline.edit_clips([video], [words])


def test_windows_cover_a_clip_and_overlap() -> None:
    for frames in range(1, 60):
        starts = windows(frames, 9, 4)
        assert starts[0] == 0
        assert starts[-1] + 9 >= frames
        assert all(after - before <= 5 for before, after in itertools.pairwise(starts))


def test_blending_windows_of_one_clip_gives_that_clip() -> None:
    whole = np.linspace(0, 255, 30, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3), np.float32)
    parts = [(start, whole[start : start + 9]) for start in windows(30, 9, 4)]
    assert np.allclose(blend(parts, 30), whole, atol=1e-3)


def test_causal_lengths_are_four_k_plus_one() -> None:
    assert [causal_length(n) for n in (1, 2, 5, 6, 9)] == [1, 5, 5, 9, 9]
