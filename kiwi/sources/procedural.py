"""The procedural generator: editing pairs whose every pixel is known, drawn from a seed and a position.

A scene is a textured background that moves and one or two moving objects of distinct colours. Edits are exact and
anchored in content (an object is named by its colour and shape), because a video transformer with rotary positions
has no absolute places to refer to. Masks and answers are for tests and the benchmark; curators never see them.

The `easy` level is what the tiny preset learns. The `rich` level adds an occluder, a shaking and zooming camera,
and sensor noise, to try the curators.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kiwi.configuration import SourceSettings
from kiwi.dataset.schema import EditPair
from kiwi.errors import UsageError
from kiwi.sources.scene_drawing import (
    Frames,
    alpha_of,
    as_bytes,
    composed,
    panned,
    placed_things,
    texture_of,
)
from kiwi.sources.scene_edits import edited, enriched
from kiwi.sources.scene_plans import COLOURS, IMAGE_KINDS, KINDS, PLAIN_BACKGROUNDS, SHAPES, STYLES, TASKS, plan_of

__all__ = [
    "COLOURS",
    "IMAGE_KINDS",
    "KINDS",
    "PLAIN_BACKGROUNDS",
    "SHAPES",
    "STYLES",
    "TASKS",
    "ProceduralSample",
    "draw",
    "list_procedural",
    "listed_kinds",
    "render_pair",
]

DATASET_NAME = "procedural"
LICENSE = "CC0-1.0"
_VIDEO_BALANCE = (4, 4, 3, 3, 2, 2, 4, 8)  # parts of the videos, in the order of KINDS
_IMAGE_BALANCE = (5, 5, 3, 3, 2, 2)


@dataclass(frozen=True)
class ProceduralSample:
    """One rendered pair with its ground truth.

    Attributes:
        source, target: uint8 [T, H, W, 3], RGB.
        edit_mask: bool [T, H, W], where the edit may change pixels.
        core_mask: bool [T, H, W], the inner part of the object (or background) that the answer colour fills.
        answer: the RGB that the core has after a right edit, for kinds that have one colour as answer.
        wrong_prompt: the same sentence with another answer; answer_wrong is its colour.
        reference: uint8 [H', W', 3], the ideal reference, for the two reference kinds.
        swapped_reference: a reference with another answer; swapped_answer is its colour (subjects only).
    """

    kind: str
    prompt: str
    fps: int
    source: Frames
    target: Frames
    edit_mask: npt.NDArray[np.bool_]
    core_mask: npt.NDArray[np.bool_]
    answer: tuple[int, int, int] | None = None
    wrong_prompt: str | None = None
    answer_wrong: tuple[int, int, int] | None = None
    reference: Frames | None = None
    swapped_reference: Frames | None = None
    swapped_answer: tuple[int, int, int] | None = None
    words: dict[str, str] = field(default_factory=dict)


def listed_kinds(settings: SourceSettings) -> list[tuple[str, str]]:
    """(media, kind) of every position, balanced exactly and shuffled by the seed."""
    rng = np.random.default_rng([settings.seed, 0xBA1A])
    videos = _balanced(KINDS, _VIDEO_BALANCE, settings.clips, rng)
    images = _balanced(IMAGE_KINDS, _IMAGE_BALANCE, settings.images, rng)
    return [("video", kind) for kind in videos] + [("image", kind) for kind in images]


def list_procedural(settings: SourceSettings) -> list[EditPair]:
    """All pairs of this source, without rendering one."""
    return [_listed(settings, position, media, kind) for position, (media, kind) in enumerate(listed_kinds(settings))]


def _listed(settings: SourceSettings, position: int, media: str, kind: str) -> EditPair:
    name = f"{settings.level}-{settings.seed}-{position:06d}"
    return EditPair(
        position=position,
        pair_id=name,
        src_video=f"procedural://{name}/source",
        tgt_video=f"procedural://{name}/target",
        prompt=plan_of(settings, position, kind).prompt,
        edit_type=kind,
        task=TASKS[kind],
        source_dataset=DATASET_NAME,
        license=LICENSE,
        media=media,
        needs_reference=kind in ("subject_reference", "background_reference"),
    )


def _balanced(kinds: tuple[str, ...], parts: tuple[int, ...], count: int, rng: np.random.Generator) -> list[str]:
    ideal = np.array(parts) / sum(parts) * count
    numbers = np.floor(ideal).astype(int)
    for index in np.argsort(numbers - ideal, kind="stable")[: count - int(numbers.sum())]:
        numbers[index] += 1
    out = [kind for kind, number in zip(kinds, numbers, strict=True) for _ in range(number)]
    rng.shuffle(out)
    return out


def render_pair(settings: SourceSettings, position: int, kind: str | None = None) -> ProceduralSample:
    """Draws the pair at `position`; the same settings and position give the same pixels.

    Args:
        kind: one of KINDS, to override the balanced list (the benchmark asks for kinds itself).

    Raises:
        UsageError: the position or the kind does not exist.
    """
    if kind is None:
        listing = listed_kinds(settings)
        if not 0 <= position < len(listing):
            raise UsageError(f"the procedural source has no pair {position}", f"it has {len(listing)}")
        media, kind = listing[position]
        frames = 1 if media == "image" else settings.frames
    else:
        frames = settings.frames
    return draw(settings, position, kind, frames)


def draw(settings: SourceSettings, position: int, kind: str, frames: int) -> ProceduralSample:
    """Draws one pair of `kind` with `frames` frames."""
    if kind not in KINDS:
        raise UsageError(f"no procedural edit kind {kind!r}", f"kinds: {', '.join(KINDS)}")
    plan = plan_of(settings, position, kind)
    rng = np.random.default_rng([settings.seed, position, 1])
    size = settings.size
    texture = texture_of(rng, plan.ground, size)
    ground = panned(texture, rng, frames, size)
    things = placed_things(rng, plan, frames, size)
    alphas = [alpha_of(thing.shape, thing.centre, thing.radius, size) for thing in things]
    paints = [np.array(COLOURS[thing.colour], np.float32) for thing in things]
    source = composed(ground, alphas, paints)
    scene = edited(rng, plan, ground, things, alphas, paints, source)
    if settings.level == "rich":
        source, scene = enriched(rng, source, scene, size)
    return ProceduralSample(
        kind=kind,
        prompt=plan.prompt,
        fps=settings.fps,
        source=as_bytes(source),
        target=as_bytes(scene.target),
        edit_mask=scene.edit_mask,
        core_mask=scene.core_mask,
        answer=scene.answer,
        wrong_prompt=plan.wrong_prompt if kind not in ("remove", "subject_reference", "background_reference") else None,
        answer_wrong=scene.answer_wrong,
        reference=scene.reference,
        swapped_reference=scene.swapped_reference,
        swapped_answer=scene.swapped_answer,
        words=plan.words,
    )
