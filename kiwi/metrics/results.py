"""What a metric hands back: a figure with its unit and direction, or the typed reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kiwi.errors import KiwiError

Frames = NDArray[np.uint8]  # [T, H, W, 3] RGB
Image = NDArray[np.uint8]  # [H, W, 3] RGB
Mask = NDArray[np.bool_]  # [T, H, W]
Direction = Literal["higher", "lower"]


class Failure(StrEnum):
    """Why there is no figure."""

    NOT_GIVEN = "not_given"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    LENGTH = "length"
    SIZE = "size"
    TOO_SHORT = "too_short"
    TOO_SMALL = "too_small"
    EMPTY_REGION = "empty_region"
    NOTHING_VISIBLE = "nothing_visible"
    FEATURES = "features"
    WEIGHTS = "weights"
    UNAVAILABLE = "unavailable"
    TOOL_FAILED = "tool_failed"


OF_NO_EDIT = (Failure.WEIGHTS, Failure.UNAVAILABLE)  # what is missing on this machine, whatever the edit


class MetricError(KiwiError):
    """A metric that could not be measured: `reason` is typed, `message` says what was seen."""

    def __init__(self, reason: Failure, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.reason = reason


@dataclass(frozen=True)
class Measured:
    """One metric of one edit, or of a set of edits.

    Attributes:
        unit: what `value` is in. direction: whether "higher" or "lower" is better.
        per_frame: the metric of each frame, or of each pair or triple of neighbours in order, where it has such;
            None for one that could not be measured and is left out of `value`.
        of_source: the same metric of the source, where that says what can be had at best.
        note: what a reader must know to compare the figure.
    """

    name: str
    value: float
    unit: str
    direction: Direction
    per_frame: tuple[float | None, ...] = ()
    of_source: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise MetricError(Failure.FEATURES, f"{self.name} came out as {self.value}, which is no figure")

    def as_dict(self) -> dict[str, Any]:
        """As JSON: without what is not there."""
        said: dict[str, Any] = {"value": self.value, "unit": self.unit, "direction": self.direction}
        if self.of_source is not None:
            said["of_source"] = self.of_source
        if self.note:
            said["note"] = self.note
        return {**said, "per_frame": list(self.per_frame)} if self.per_frame else said


@dataclass(frozen=True)
class Unmeasured:
    """A metric without a figure. No number stands in for it."""

    name: str
    reason: Failure
    message: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        said = {"reason": self.reason.value, "message": self.message}
        return {**said, "remedy": self.remedy} if self.remedy else said


def check_clip(frames: Frames, called: str) -> None:
    """Raises MetricError(UNREADABLE, TOO_SHORT) for what is no clip of RGB frames."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        said = f"{called} has shape {frames.shape} and type {frames.dtype}"
        raise MetricError(Failure.UNREADABLE, said, "give RGB frames, uint8 [T, H, W, 3]")
    if 0 in frames.shape:
        raise MetricError(Failure.TOO_SHORT, f"{called} holds no pixel (shape {frames.shape})")


def check_alike(edit: Frames, other: Frames, called: str) -> None:
    """Raises MetricError(LENGTH, SIZE) where two clips cannot be laid on one another frame by frame."""
    check_clip(edit, "the edit")
    check_clip(other, f"the {called}")
    if edit.shape[1:3] != other.shape[1:3]:
        said = f"the edit is {_size(edit)}, the {called} {_size(other)}"
        raise MetricError(Failure.SIZE, said, "edits keep the size of their source: nothing is scaled here")
    if len(edit) != len(other):
        said = f"the edit has {len(edit)} frames, the {called} {len(other)}"
        raise MetricError(Failure.LENGTH, said, "edits keep the length of their source: nothing is cut here")


def check_region(frames: Frames, region: Mask) -> None:
    """Raises MetricError(LENGTH, SIZE, UNREADABLE) for a mask that does not lie on the frames."""
    if region.ndim != 3 or region.dtype != np.bool_:
        said = f"the mask has shape {region.shape} and type {region.dtype}"
        raise MetricError(Failure.UNREADABLE, said, "give booleans [T, H, W]")
    if region.shape[1:] != frames.shape[1:3]:
        said = f"the mask is {region.shape[2]}x{region.shape[1]}, the edit {_size(frames)}"
        raise MetricError(Failure.SIZE, said, "give a mask of the edit's size")
    if len(region) != len(frames):
        said = f"the mask has {len(region)} frames, the edit {len(frames)}"
        raise MetricError(Failure.LENGTH, said, "give a mask of the edit's length, or a still image")


def _size(frames: Frames) -> str:
    return f"{frames.shape[2]}x{frames.shape[1]}"
