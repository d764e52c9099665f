"""How an edit is sampled, and the sizes, lengths and steps that go with each preset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kiwi.editing.errors import EditError
from kiwi.editing.sampling import SAMPLERS, Sampler
from kiwi.editing.step_cache import STEP_CACHES, StepCache


@dataclass(frozen=True)
class SamplingOptions:
    """What of an edit is a choice. None is the preset's own value.

    Attributes:
        steps: evaluations of the model for each window.
        size: the square root of the pixels that the model sees of a frame.
        window: frames that the model sees at once; longer clips are edited in windows.
        overlap: frames that a window shares with the one before, at least.
        carry: whether a window begins from the edit of the frames that it shares, or each from noise alone.
        batch_size: windows, of one clip or of several, that are denoised together.
    """

    steps: int | None = None
    sampler: Sampler = "euler"
    step_cache: StepCache = "none"
    seed: int = 0
    size: int | None = None
    window: int | None = None
    overlap: int | None = None
    carry: bool = False
    batch_size: int | None = None


@dataclass(frozen=True)
class _Preset:
    steps: int
    size: int
    window: int
    overlap: int
    batch_size: int


_SMALL = _Preset(steps=5, size=64, window=9, overlap=4, batch_size=8)
_RELEASED = _Preset(steps=50, size=960, window=81, overlap=16, batch_size=1)
_PRESETS = {"tiny": _SMALL, "middle": _SMALL}


def completed(options: SamplingOptions, preset: str) -> SamplingOptions:
    """The options with the preset's values where none is given. Raises EditError for values that cannot be."""
    own = _PRESETS.get(preset, _RELEASED)
    window = options.window or own.window
    given: dict[str, Any] = {
        "steps": options.steps or own.steps,
        "size": options.size or own.size,
        "window": window,
        "overlap": min(own.overlap, window - 1) if options.overlap is None else options.overlap,
        "batch_size": options.batch_size or own.batch_size,
    }
    full = replace(options, **given)
    if full.sampler not in SAMPLERS:
        raise EditError(f"no sampler {full.sampler!r}", f"samplers: {', '.join(SAMPLERS)}")
    if full.step_cache not in STEP_CACHES:
        raise EditError(f"no step cache {full.step_cache!r}", f"step caches: {', '.join(STEP_CACHES)}")
    if not 0 <= given["overlap"] < window:
        raise EditError(f"an overlap of {given['overlap']} frames in windows of {window}", "give 0 to window - 1")
    for name in ("steps", "size", "window", "batch_size"):
        if given[name] < 1:
            raise EditError(f"{name} is {given[name]}", "give 1 or more")
    return full
