"""What the language model is shown: sizes by the released rule, and the places of its tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiwi.model.editor import KiwiEditModel
from kiwi.model.errors import ModelError
from kiwi.model.instruction import PromptTemplate, VisionGrid, rope_positions, tokenise
from kiwi.model.vision import PATCH, VisionBudget, VisionSize, views_as_json, views_of_json


def frames(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 20), st.integers(8, 600), st.integers(8, 600))
def test_any_clip_fits_the_budget_in_whole_tokens(count: int, height: int, width: int) -> None:
    views = VisionBudget()
    seen = views.clip(np.zeros((count, height, width, 3), np.uint8), "video")
    pixels = seen.shape[1] * seen.shape[2]
    assert len(seen) == min(count, 16)
    assert seen.shape[1] % PATCH == 0
    assert seen.shape[2] % PATCH == 0
    long = max(height, width) > 20 * min(height, width)  # where a side of one token is the least there is
    assert long or 128 * PATCH**2 <= pixels <= views.frame_pixels


@pytest.mark.parametrize(
    ("size", "expected"), [((704, 1280), (336, 672)), ((1280, 704), (672, 336)), ((64, 64), (336, 336))]
)
def test_frames_of_usual_clips_have_the_released_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert VisionBudget().clip(frames(2, *size), "video").shape[1:3] == expected


def test_one_frame_is_an_image_but_with_a_reference_a_video() -> None:
    views = VisionBudget()
    assert views.clip(frames(1, 56, 84), "image").shape == (1, 56, 84, 3)
    assert views.clip(frames(1, 56, 84), "reference").shape == (1, 280, 392, 3)


def test_frames_are_evenly_spaced_with_the_first_and_the_last() -> None:
    clip = np.repeat(np.arange(33, dtype=np.uint8), 336 * 336 * 3).reshape(33, 336, 336, 3)
    shown = VisionBudget().clip(clip, "video")[:, 0, 0, 0].tolist()
    assert shown == [0, 2, 4, 6, 9, 11, 13, 15, 17, 19, 21, 23, 26, 28, 30, 32]


def test_a_reference_keeps_its_aspect_within_its_tokens() -> None:
    seen = VisionBudget(reference_tokens=16).reference(frames(1, 100, 130)[0])
    assert seen.shape == (84, 112, 3)


def test_pictures_and_budgets_that_have_no_size_are_refused() -> None:
    with pytest.raises(ModelError, match="200 times as long as wide"):
        VisionBudget().reference(frames(1, 2, 500)[0])
    with pytest.raises(ModelError, match="less than the"):
        VisionBudget(frame_pixels=20_000).clip(frames(2, 64, 64), "video")


@pytest.mark.parametrize("views", [VisionSize(2, 56), VisionBudget(4, 120_000, 16)])
def test_a_folder_says_which_rule_its_weights_saw(views: VisionSize | VisionBudget) -> None:
    assert views_of_json(views_as_json(views)) == views


def test_folders_older_than_the_rules_mean_squares() -> None:
    assert views_of_json({"frames": 2, "side": 56}) == VisionSize(2, 56)
    with pytest.raises(ModelError, match="no vision rule 'round'"):
        views_of_json({"rule": "round"})


def stock_positions(model: KiwiEditModel, ids: torch.Tensor, grid: VisionGrid) -> torch.Tensor:
    mllm = model.context_encoder.mllm
    types = 2 * (ids == mllm.config.video_token_id).int()
    grids = torch.tensor([[grid.frames, grid.height, grid.width]])
    positions, _ = mllm.model.get_rope_index(
        ids[None], types[None], video_grid_thw=grids, second_per_grid_ts=torch.ones(1)
    )
    return positions[:, 0]


def test_text_goes_on_after_the_largest_position_of_a_clip(tiny_model: KiwiEditModel) -> None:
    encoder = tiny_model.context_encoder
    template = replace(encoder.template, hint=True)
    for grid, same in ((VisionGrid(1, 4, 4), True), (VisionGrid(2, 8, 6), True), (VisionGrid(8, 8, 6), False)):
        prompt = tokenise(template, encoder.tokenizer, encoder.mllm, "Remove it.", "video", grid)
        stock = stock_positions(tiny_model, prompt.input_ids, grid)
        assert torch.equal(prompt.position_ids, stock) == same
        end = int(torch.nonzero(prompt.input_ids == encoder.mllm.config.video_token_id).max())
        assert prompt.position_ids[0, end + 1] == prompt.position_ids[:, : end + 1].max() + 1


def test_positions_of_a_clip_and_a_reference_stand_where_they_were_worked_out_by_hand(
    tiny_model: KiwiEditModel,
) -> None:
    config = tiny_model.context_encoder.mllm.config
    video, image = config.video_token_id, config.image_token_id
    ids = torch.tensor([40, video, video, video, video, 41, image, image, 42])
    positions = rope_positions(ids, config, VisionGrid(2, 2, 4), VisionGrid(1, 2, 4))
    assert positions.tolist() == [
        [0, 1, 1, 3, 3, 4, 5, 5, 7],
        [0, 1, 1, 1, 1, 4, 5, 5, 7],
        [0, 1, 2, 1, 2, 4, 5, 6, 7],
    ]


def test_the_template_of_the_released_weights_is_theirs(tiny_model: KiwiEditModel) -> None:
    template = PromptTemplate("Say it.", {"image": 2, "video": 2, "reference": 3})
    said = "".join(template.text("add a hat", "reference", VisionGrid(1, 4, 4), VisionGrid(1, 2, 2), 2))
    assert said == (
        "<|im_start|>system\nSay it.<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|><|video_pad|>"
        "<|video_pad|><|video_pad|><|vision_end|>add a hat Use the reference input from last frame.<|vision_start|>"
        "<|image_pad|><|vision_end|><|object_ref_start|><|object_ref_start|><|object_ref_start|><|im_end|>\n"
    )
