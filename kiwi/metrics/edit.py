"""All metrics of one edit, on clips that were decoded once; each is measured or says by a typed reason why not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from kiwi.benchmark.measured import CHANGED
from kiwi.errors import UsageError
from kiwi.metrics.clip import ClipFeatures, clip_consistency, clip_image, clip_text
from kiwi.metrics.fidelity import psnr, ssim
from kiwi.metrics.flicker import flicker
from kiwi.metrics.flow import warping_error, warping_error_source_flow
from kiwi.metrics.frames import over_frames
from kiwi.metrics.results import Failure, Frames, Image, Mask, Measured, MetricError, Unmeasured, check_alike
from kiwi.metrics.sharpness import sharpness
from kiwi.metrics.vmaf import PROGRAM, vmaf

METRICS = (
    "psnr_outside", "ssim_outside", "psnr_target", "ssim_target", "vmaf", "warping_error", "warping_error_source_flow",
    "flicker", "sharpness", "clip_text", "clip_image", "clip_consistency",
)  # fmt: skip
Given = TypeVar("Given")


@dataclass(frozen=True)
class EditClips:
    """What is measured: each part as decoded, as the failure to read it, or None where it is not given.

    Attributes:
        edit, source, target: uint8 [T, H, W, 3]; the target is ground truth.
        mask: bool [T, H, W], where the edit belongs; taken from source and target where those are and it is not.
        reference: uint8 [h, w, 3]. prompt: what the edit should show.
    """

    edit: Frames | MetricError
    source: Frames | MetricError | None = None
    target: Frames | MetricError | None = None
    mask: Mask | MetricError | None = None
    reference: Image | MetricError | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class EditReport:
    """Every metric that was asked for, measured or not.

    Attributes:
        shape: (frames, height, width) of the edit; None where it could not be read.
        seconds: what each metric took; what several share (CLIP's features, the edit region) is the first one's.
    """

    shape: tuple[int, int, int] | None
    measured: tuple[Measured, ...]
    unmeasured: tuple[Unmeasured, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        shape = dict(zip(("frames", "height", "width"), self.shape, strict=True)) if self.shape else {}
        return {
            **shape,
            "metrics": {each.name: each.as_dict() for each in self.measured},
            "unmeasured": {each.name: each.as_dict() for each in self.unmeasured},
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def measure_edit(
    clips: EditClips, clip: ClipFeatures | None = None, only: Sequence[str] = METRICS, ffmpeg: str = PROGRAM
) -> EditReport:
    """Measures one edit. What cannot be measured is `unmeasured`; it stops nothing else.

    Args:
        clip: CLIP, for the metrics that need it. only: which metrics. ffmpeg: the program that VMAF is asked from.

    Raises:
        UsageError: an unknown metric.
    """
    unknown = [name for name in only if name not in METRICS]
    if unknown:
        raise UsageError(f"no metric {unknown[0]!r}", f"metrics: {', '.join(METRICS)}")
    makers = _makers(clips, clip, ffmpeg)
    found: list[Measured | Unmeasured] = []
    seconds: dict[str, float] = {}
    for name in only:
        started = time.perf_counter()
        found.append(attempt(name, makers[name]))
        seconds[name] = time.perf_counter() - started
    count, height, width = clips.edit.shape[:3] if not isinstance(clips.edit, MetricError) else (0, 0, 0)
    measured = tuple(each for each in found if isinstance(each, Measured))
    unmeasured = tuple(each for each in found if isinstance(each, Unmeasured))
    return EditReport((count, height, width) if count else None, measured, unmeasured, seconds)


def attempt(name: str, measure: Callable[[], Measured]) -> Measured | Unmeasured:
    """What `measure` gives, or the reason why it could not."""
    try:
        return measure()
    except MetricError as error:
        return Unmeasured(name, error.reason, error.message, error.remedy)


def edit_region(source: Frames, target: Frames) -> Mask:
    """Where ground truth visibly differs from the source, bool [T, H, W]: by more than 16 levels after a 5 by 5 mean.

    The rule by which the benchmark finds it in pairs without a mask (docs/benchmark.md), frame by frame.
    """

    def one(index: int) -> NDArray[np.bool_]:
        red, green, blue = cv2.split(cv2.absdiff(source[index], target[index]))
        difference = cv2.max(cv2.max(red, green), blue)
        return np.asarray(cv2.blur(difference.astype(np.float32), (5, 5))) > CHANGED

    return np.stack(over_frames(one, len(source)))


def _makers(clips: EditClips, clip: ClipFeatures | None, ffmpeg: str) -> dict[str, Callable[[], Measured]]:
    """By name, what measures it; nothing is computed before it is asked for, nor twice."""
    outside = _kept(lambda: _outside(clips))

    def edit() -> Frames:
        return _given(clips.edit, "edit")

    def source() -> Frames:
        return _given(clips.source, "source")

    def target() -> Frames:
        return _given(clips.target, "ground truth")

    def beside() -> Frames | None:
        """The source for comparison, where there is one of the edit's size."""
        readable = isinstance(clips.source, np.ndarray) and clips.source.shape[1:3] == edit().shape[1:3]
        return source() if readable else None

    def described() -> ClipFeatures:
        return _given(clip, "CLIP model")

    of_edit = _kept(lambda: described().frames(edit()))

    def of_source() -> NDArray[np.float32] | None:
        return None if clips.source is None or isinstance(clips.source, MetricError) else described().frames(source())

    return {
        "psnr_outside": lambda: psnr("psnr_outside", edit(), source(), "source", outside()),
        "ssim_outside": lambda: ssim("ssim_outside", edit(), source(), "source", outside()),
        "psnr_target": lambda: psnr("psnr_target", edit(), target(), "ground truth"),
        "ssim_target": lambda: ssim("ssim_target", edit(), target(), "ground truth"),
        "vmaf": lambda: vmaf(edit(), target(), ffmpeg),
        "warping_error": lambda: warping_error(edit()),
        "warping_error_source_flow": lambda: warping_error_source_flow(edit(), source()),
        "flicker": lambda: flicker(edit(), beside()),
        "sharpness": lambda: sharpness(edit(), beside()),
        "clip_text": lambda: clip_text(of_edit(), _given(clips.prompt, "prompt"), described()),
        "clip_image": lambda: clip_image(of_edit(), _given(clips.reference, "reference"), described()),
        "clip_consistency": lambda: clip_consistency(of_edit(), of_source(), described().settings.model),
    }


def _outside(clips: EditClips) -> Mask:
    """Where nothing should change."""
    if clips.mask is not None:
        return ~_given(clips.mask, "mask")
    if clips.target is None:
        said = "neither a mask nor ground truth tells where the edit belongs"
        raise MetricError(Failure.NOT_GIVEN, said, "give a mask or the ground truth")
    source, target = _given(clips.source, "source"), _given(clips.target, "ground truth")
    check_alike(_given(clips.edit, "edit"), source, "source")
    check_alike(target, source, "source")
    return ~edit_region(source, target)


def _given(value: Given | MetricError | None, called: str) -> Given:
    if value is None:
        raise MetricError(Failure.NOT_GIVEN, f"no {called} is given")
    if isinstance(value, MetricError):
        raise value
    return value


def _kept(compute: Callable[[], Given]) -> Callable[[], Given]:
    """`compute`, called at most once; a failure is kept as well and raised again."""
    kept: list[Given | MetricError] = []

    def value() -> Given:
        if not kept:
            try:
                kept.append(compute())
            except MetricError as error:
                kept.append(error)
        (found,) = kept
        if isinstance(found, MetricError):
            raise found
        return found

    return value
