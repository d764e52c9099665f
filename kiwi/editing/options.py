"""How an edit is sampled. What is not said is the model's own: sizes, lengths and steps from its folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kiwi.editing.errors import EditError
from kiwi.editing.geometry import nearest_length
from kiwi.editing.sampling import SAMPLERS, Sampler
from kiwi.editing.step_cache import STEP_CACHES, StepCache
from kiwi.editing.wording import check_seed
from kiwi.model.defaults import EditDefaults
from kiwi.model.flow import TRAINING_STEPS


@dataclass(frozen=True)
class SamplingOptions:
    """What of an edit is a choice. None is the model's own value.

    Attributes:
        steps: evaluations of the model for each window.
        size: the square root of the pixels that the model sees of a frame.
        window: frames that the model sees at once, rounded to 4k + 1; longer clips are edited in windows.
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


def completed(options: SamplingOptions, own: EditDefaults) -> SamplingOptions:
    """The options with the model's values where none is given. Raises EditError for values that cannot be."""
    window = own.frames if options.window is None else options.window
    if options.window is not None and window > 0:
        window = nearest_length(window)
    given: dict[str, Any] = {
        "steps": own.steps if options.steps is None else options.steps,
        "size": own.size if options.size is None else options.size,
        "window": window,
        "overlap": min(own.overlap, window - 1) if options.overlap is None else options.overlap,
        "batch_size": own.batch_size if options.batch_size is None else options.batch_size,
    }
    full = replace(options, **given)
    if full.sampler not in SAMPLERS:
        raise EditError(f"no sampler {full.sampler!r}", f"samplers: {', '.join(SAMPLERS)}")
    if full.step_cache not in STEP_CACHES:
        raise EditError(f"no step cache {full.step_cache!r}", f"step caches: {', '.join(STEP_CACHES)}")
    for name in ("steps", "size", "window", "batch_size"):
        if given[name] < 1:
            raise EditError(f"{name} is {given[name]}", "give 1 or more")
    if not 0 <= given["overlap"] < window:
        raise EditError(f"an overlap of {given['overlap']} frames in windows of {window}", "give 0 to window - 1")
    check_steps(given["steps"])
    check_seed(options.seed)
    return full


def check_steps(steps: int) -> None:
    """Raises EditError for a number of steps that the noise levels of training do not hold."""
    if not 1 <= steps <= TRAINING_STEPS:
        raise EditError(f"{steps} sampling steps", f"give 1 to {TRAINING_STEPS}, the noise levels of training")
