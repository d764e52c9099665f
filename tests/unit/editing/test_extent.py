"""Windows that a model has no positions for, or no memory holds, are refused before they are tried."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kiwi.editing import extent
from kiwi.editing.errors import EditError
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.model.editor import KiwiEditModel
from kiwi.model.inputs import fit_size

EDGE = 1024  # of the tiny preset: 128 positions of 8 pixels


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (720, 1280), (1280, 720), (20, 900)])
def test_a_size_beyond_the_positions_is_refused_and_the_largest_one_is_named(
    random_model: KiwiEditModel, shape: tuple[int, int]
) -> None:
    with pytest.raises(EditError, match="at most 1,024 pixels a side") as error:
        extent.check_extent(random_model, "cpu", 8192, 9, shape, False)
    found = re.search(r"--size (\d+) or less", error.value.remedy)
    assert found is not None
    largest = int(found[1])
    extent.check_extent(random_model, "cpu", largest, 9, shape, False)
    assert max(fit_size(*shape, largest, random_model.pixel_multiple)) == EDGE
    with pytest.raises(EditError):
        extent.check_extent(random_model, "cpu", largest + 1, 9, shape, False)


@pytest.mark.parametrize(("referenced", "longest"), [(False, 509), (True, 505)])
def test_a_window_beyond_the_positions_is_refused_and_the_longest_one_is_named(
    random_model: KiwiEditModel, referenced: bool, longest: int
) -> None:
    extent.check_extent(random_model, "cpu", 64, longest, (64, 64), referenced)
    with pytest.raises(EditError, match=f"{longest + 4} frames is longer") as error:
        extent.check_extent(random_model, "cpu", 64, longest + 4, (64, 64), referenced)
    assert f"--window {longest} or less" in error.value.remedy


def test_the_transformer_takes_the_largest_that_is_allowed_and_no_more(random_model: KiwiEditModel) -> None:
    """A strip of one frame, so that the largest side costs little; beyond it the rotary table is too short."""
    clip = np.zeros((1, 8, 32, 3), np.uint8)
    largest = extent.largest_side((8, 32), EDGE, random_model.pixel_multiple)
    fits, beyond = (KiwiEditPipeline(random_model, side=side) for side in (largest, largest + 1))
    (edit,) = fits.edit_clips([clip], ["Make it blue."], num_inference_steps=1)
    assert edit.shape == clip.shape
    with pytest.raises(EditError, match="pixels a side"):
        beyond.edit_clips([clip], ["Make it blue."], num_inference_steps=1)


def test_a_window_that_no_memory_holds_is_refused(random_model: KiwiEditModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's memory is a fake, for real ones differ."""
    extent.check_extent(random_model, "cpu", 512, 9, (64, 64), False)
    monkeypatch.setattr(extent, "_memory_of", lambda device: 2**24)
    with pytest.raises(EditError, match=r"9 frames of 512x512 takes at least .* GiB of memory, and cpu has") as error:
        extent.check_extent(random_model, "cpu", 512, 9, (64, 64), False)
    assert error.value.reason == "out_of_memory"
