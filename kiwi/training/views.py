"""The sizes and lengths that the stages of a curriculum train at: each has a latent cache of its own."""

from __future__ import annotations

from dataclasses import dataclass

from kiwi.configuration import MediaKind, RunConfiguration, StageSettings

KINDS: tuple[MediaKind, ...] = ("image", "video", "reference")


@dataclass(frozen=True)
class View:
    """One size and length of clips.

    Attributes:
        size: the square root of a frame's pixels.
        frames: of a clip, at most.
        kinds: of samples that some stage draws at this size.
        pixels: whether references are kept as pixels too, to be shown at random scales.
    """

    size: int
    frames: int
    kinds: tuple[MediaKind, ...] = KINDS
    pixels: bool = False

    def own(self, configuration: RunConfiguration) -> list[object]:
        """What sets it apart from the model's own size and length; empty for these."""
        if (self.size, self.frames) == (configuration.model.size, configuration.model.frames):
            return ["pixels"] if self.pixels else []
        return [self.size, self.frames, list(self.kinds), self.pixels]


def views(configuration: RunConfiguration) -> list[View]:
    """Every view of the curriculum, in the order of the stages; stages of one size and length share theirs."""
    found: dict[tuple[int, int], list[StageSettings]] = {}
    for stage in configuration.stages:
        found.setdefault(_size(configuration, stage), []).append(stage)
    return [_view(configuration, size, stages) for size, stages in found.items()]


def view_of(configuration: RunConfiguration, stage: StageSettings) -> View:
    size = _size(configuration, stage)
    return next(view for view in views(configuration) if (view.size, view.frames) == size)


def _size(configuration: RunConfiguration, stage: StageSettings) -> tuple[int, int]:
    return stage.size or configuration.model.size, stage.frames or configuration.model.frames


def _view(configuration: RunConfiguration, size: tuple[int, int], stages: list[StageSettings]) -> View:
    pixels = any(stage.reference_scale is not None for stage in stages)
    if size == (configuration.model.size, configuration.model.frames):
        return View(*size, KINDS, pixels)  # shared by all curricula on this dataset and model
    drawn = {kind for stage in stages for kind, share in stage.mix.items() if share > 0}
    return View(*size, tuple(kind for kind in KINDS if kind in drawn), pixels)
