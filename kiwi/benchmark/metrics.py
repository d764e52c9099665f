"""Measurements of an edit against ground truth: PSNR over the frame and inside the edit, and the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from kiwi.benchmark.pixels import decibels, mean_inside, squared_error
from kiwi.benchmark.rubric import FailedMeasurement, Frames, Mask, MeasurementError, check_edit
from kiwi.benchmark.samples import BenchmarkSample

COPY_SHARE = 0.25


@dataclass(frozen=True)
class SampleMetrics:
    """Figures of one edit. PSNR in dB, higher is better, at most 60; `accurate` is None without a known answer."""

    psnr_full: float
    psnr_edit: float
    copy_psnr_full: float
    copy_psnr_edit: float
    accurate: bool | None

    def as_dict(self) -> dict[str, float | bool | None]:
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(self).items()}


def nearest_colour(colour: npt.NDArray[np.float64], palette: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """The colour of `palette` at the smallest Euclidean distance in RGB (the first of equals)."""
    distances = ((np.asarray(palette, dtype=np.float64) - colour) ** 2).sum(axis=1)
    return palette[int(distances.argmin())]


def shows_answer(
    edit: Frames, core: Mask, answer: tuple[int, int, int], palette: Sequence[tuple[int, int, int]]
) -> bool:
    """Whether the mean colour at the object's core, over all frames, is nearest to `answer` of the palette.

    Chance is one in the palette's size. Raises MeasurementError(EMPTY_REGION) where the core holds no pixel.
    """
    inside = edit[core]
    if inside.size == 0:
        raise MeasurementError(FailedMeasurement.EMPTY_REGION, "the object's core holds no pixel")
    return nearest_colour(inside.mean(axis=0, dtype=np.float64), palette) == tuple(answer)


def is_accurate(sample: BenchmarkSample, edit: Frames) -> bool | None:
    """Whether the edit did what was asked: the answer's colour at the core, else an error below a quarter of a copy's.

    The error is the mean squared one inside the edit region (a quarter is 6 dB better than copying the source). None
    for samples without a known answer: the user's own pairs. "Nearer to the target than to the source" is not used:
    noise satisfies it in 63% of cases (docs/benchmark.md).
    """
    if not sample.has_answer:
        return None
    if sample.answer is not None:
        if sample.core_mask is None:
            raise MeasurementError(FailedMeasurement.EMPTY_REGION, "the sample has an answer and no core to look at")
        return shows_answer(edit, sample.core_mask, sample.answer, sample.palette)
    error = mean_inside(squared_error(edit, sample.truth), sample.edit_mask)
    copied = mean_inside(squared_error(sample.source, sample.truth), sample.edit_mask)
    return error < COPY_SHARE * copied


def measure(sample: BenchmarkSample, edit: Frames | None) -> SampleMetrics:
    """All figures of one edit of one sample. Raises MeasurementError for a missing or misshapen one."""
    made = check_edit(sample.source, edit)
    error = squared_error(made, sample.truth)
    copied = squared_error(sample.source, sample.truth)
    return SampleMetrics(
        psnr_full=decibels(mean_inside(error)),
        psnr_edit=decibels(mean_inside(error, sample.edit_mask)),
        copy_psnr_full=decibels(mean_inside(copied)),
        copy_psnr_edit=decibels(mean_inside(copied, sample.edit_mask)),
        accurate=is_accurate(sample, made),
    )
