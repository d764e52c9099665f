"""What is judged: the six criteria of RefVIE-Bench, which sample is asked which, the cap, and what a judge may see.

Paper, section 3.3: subject references are judged for identity, temporal and physical consistency, backgrounds for
reference similarity, matting and video quality, each 1-5; the second and third never exceed the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from kiwi.errors import KiwiError

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3] RGB
Image = npt.NDArray[np.uint8]  # [H, W, 3] RGB
Mask = npt.NDArray[np.bool_]  # [T, H, W]
Rubric = Literal["subject", "background"]
Category = Literal[
    "subject_reference", "background_reference",
    "global_style", "background_change", "local_change", "local_remove", "local_add",
]  # fmt: skip

CRITERIA: dict[Rubric, tuple[str, str, str]] = {
    "subject": ("identity_consistency", "temporal_consistency", "physical_consistency"),
    "background": ("reference_similarity", "matting_quality", "video_quality"),
}
REFERENCE_CATEGORIES: dict[Rubric, Category] = {"subject": "subject_reference", "background": "background_reference"}
# Words in the name of a kind or edit type, the first that fits; what has none of them is a change of its rubric's sort.
CATEGORY_WORDS: tuple[tuple[str, Category], ...] = (
    ("style", "global_style"),
    ("background", "background_change"),
    ("remov", "local_remove"),
    ("add", "local_add"),
)
ALL_CRITERIA = CRITERIA["subject"] + CRITERIA["background"]
LOWEST, HIGHEST = 1.0, 5.0


class FailedMeasurement(StrEnum):
    """Why a sample has no figure. Such a sample lowers coverage; no number stands in for it."""

    EDIT_MISSING = "edit_missing"
    EDIT_SHAPE = "edit_shape"
    SOURCE_UNREADABLE = "source_unreadable"
    NO_GROUND_TRUTH = "no_ground_truth"
    NO_EDIT_IN_TRUTH = "no_edit_in_truth"
    EMPTY_REGION = "empty_region"
    ONE_FRAME = "one_frame"
    REPLY_INVALID = "reply_invalid"
    REQUEST_REFUSED = "request_refused"
    PICTURE_INVALID = "picture_invalid"
    JUDGE_ERROR = "judge_error"


class MeasurementError(KiwiError):
    """One sample that could not be measured: `reason` is typed, `message` says what was seen."""

    def __init__(self, reason: FailedMeasurement, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class JudgeView:
    """All that a judge may see of one edit.

    Attributes:
        source, edit: uint8 [T, H, W, 3]. reference: uint8 [h, w, 3], or None for an instruction-only edit.
        rubric: which three criteria are asked. prompt: the instruction.
        edit_mask: bool [T, H, W], where the ground truth differs from the source by construction, or None.
        truth: uint8 [T, H, W, 3], or None where the benchmark has no ground truth.
        category: the sort of edit that was asked for.
    """

    source: Frames
    edit: Frames
    reference: Image | None
    rubric: Rubric
    prompt: str
    edit_mask: Mask | None
    truth: Frames | None
    category: Category = "local_change"


class ViewJudge(Protocol):
    """Gives the three criteria of a view's rubric, 1-5 and not yet capped; raises MeasurementError where it cannot."""

    name: str

    def judge(self, view: JudgeView) -> dict[str, float]: ...


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one edit.

    Attributes:
        scores: capped, the mean over repeats; None where there is a failure. No score stands in for one.
        repeats: capped, each time that the judge was asked.
        failure: why there is no score.
    """

    scores: dict[str, float] | None
    repeats: tuple[dict[str, float], ...] = ()
    failure: MeasurementError | None = None


class Judge(Protocol):
    """Judges many edits, several at once where that is quicker.

    Attributes:
        name: with its version: scores compare only where it is the same.
        exact: the same pixels get the same scores, so that it has no spread of its own.
    """

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def judge_all(self, views: Iterable[JudgeView]) -> Iterator[Judgement]:
        """One judgement for each view, in order; views are drawn lazily."""

    def spent(self) -> dict[str, Any]:
        """What judging has cost so far: requests, tokens, money; empty for a judge that costs nothing."""


@dataclass(frozen=True)
class OneByOne:
    """A judge of many from an exact judge of one."""

    one: ViewJudge
    exact: bool = True

    @property
    def name(self) -> str:
        return self.one.name

    def judge_all(self, views: Iterable[JudgeView]) -> Iterator[Judgement]:
        for view in views:
            try:
                scores = judge_view(self.one, view)
            except MeasurementError as failure:
                yield Judgement(None, failure=failure)
            else:
                yield Judgement(scores, (scores,))

    def spent(self) -> dict[str, Any]:
        return {}


def category_of(kind: str, rubric: Rubric, *, guided: bool) -> Category:
    """The category of an edit whose source calls it `kind`; `guided`: it has a reference."""
    if guided:
        return REFERENCE_CATEGORIES[rubric]
    fallback: Category = "background_change" if rubric == "background" else "local_change"
    return next((category for word, category in CATEGORY_WORDS if word in kind.lower()), fallback)


def apply_cap(scores: Mapping[str, float], rubric: Rubric) -> dict[str, float]:
    """The paper's hierarchical constraint: second and third criterion are lowered to the first where they exceed it.

    The only place where the cap is enforced: every judge's reply passes here. Raises MeasurementError(REPLY_INVALID)
    for a reply without exactly the rubric's criteria, or with one that is no number from 1 to 5.
    """
    names = CRITERIA[rubric]
    if set(scores) != set(names):
        raise MeasurementError(FailedMeasurement.REPLY_INVALID, f"criteria {sorted(scores)}, expected {sorted(names)}")
    for name in names:
        if not LOWEST <= scores[name] <= HIGHEST:  # also refuses NaN
            raise MeasurementError(FailedMeasurement.REPLY_INVALID, f"{name} is {scores[name]}, expected 1 to 5")
    return {name: float(min(scores[name], scores[names[0]])) for name in names}


def judge_view(judge: ViewJudge, view: JudgeView) -> dict[str, float]:
    """One capped judgement. Raises MeasurementError for an edit of another shape, or where the judge cannot measure."""
    check_edit(view.source, view.edit)
    return apply_cap(judge.judge(view), view.rubric)


def check_edit(source: Frames, edit: Frames | None) -> Frames:
    """Returns `edit` if it can be held against `source` frame by frame; raises MeasurementError otherwise."""
    if edit is None:
        raise MeasurementError(FailedMeasurement.EDIT_MISSING, "no edit was made or stored")
    if edit.dtype != np.uint8 or edit.shape != source.shape:
        raise MeasurementError(
            FailedMeasurement.EDIT_SHAPE,
            f"the edit is {edit.dtype} {list(edit.shape)}, the source uint8 {list(source.shape)}",
        )
    return edit
