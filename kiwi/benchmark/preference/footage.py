"""What a set of edits hands over of one sample: its clips, or why it cannot be shown."""

from __future__ import annotations

from dataclasses import dataclass

from kiwi.benchmark.rubric import Frames, Image


@dataclass(frozen=True)
class Footage:
    """A clip before it is a file: frames uint8 [T, H, W, 3] and frames a second."""

    frames: Frames
    fps: float


@dataclass(frozen=True)
class Opened:
    """One sample of a set. What a listed set does not say (source, prompt) must come from another set."""

    edit: Footage
    source: Footage | None = None
    reference: Image | None = None
    truth: Footage | None = None


@dataclass(frozen=True)
class Unusable:
    """A sample that a set lists and cannot show, with the reason."""

    reason: str
