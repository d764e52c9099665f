"""The exact edits of procedural scenes, and what makes the rich level harder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kiwi.sources.scene_drawing import (
    BESIDE,
    OUTLINE,
    Frames,
    Plane,
    Thing,
    alpha_of,
    as_bytes,
    camera_grid,
    composed,
    core_of,
    distance_field,
    portrait,
    styled,
    texture_of,
)
from kiwi.sources.scene_plans import COLOURS, PLAIN_BACKGROUNDS, Plan, ground_colour


@dataclass
class Scene:
    target: Plane
    edit_mask: npt.NDArray[np.bool_]
    core_mask: npt.NDArray[np.bool_]
    answer: tuple[int, int, int] | None = None
    answer_wrong: tuple[int, int, int] | None = None
    reference: Frames | None = None
    swapped_reference: Frames | None = None
    swapped_answer: tuple[int, int, int] | None = None


def edited(
    rng: np.random.Generator,
    plan: Plan,
    ground: Plane,
    things: list[Thing],
    alphas: list[Plane],
    paints: list[Plane],
    source: Plane,
) -> Scene:
    size = ground.shape[1]
    words, subject = plan.words, things[0]
    if plan.kind == "style":
        everywhere = np.ones(ground.shape[:3], bool)
        return Scene(styled(source, words["new"]), everywhere, everywhere)
    if plan.kind in ("background", "background_reference"):
        return _edit_background(rng, plan, ground, alphas, paints)
    if plan.kind == "remove":
        target = composed(ground, alphas[1:], paints[1:])
        return Scene(target, alphas[0] > 0, alphas[0] >= 1)
    colour, shape = words["new"], words["new_shape"]
    new = np.array(COLOURS[colour], np.float32)
    if plan.kind == "recolour":
        target = composed(ground, alphas, [new, *paints[1:]])
        return Scene(
            target, alphas[0] > 0, core_of(subject.shape, subject, size), COLOURS[colour], COLOURS[words["wrong"]]
        )
    if plan.kind == "add" and plan.outlined:
        around = distance_field(subject.shape, subject.centre, subject.radius, size)
        band = np.clip(np.minimum(around + OUTLINE + 0.5, -around - 0.5), 0, 1)
        target = composed(ground, [*alphas, band], [*paints, new])
        core = (around > 1.5 - OUTLINE) & (around < -1.5)
        return Scene(target, band > 0, core, COLOURS[colour], COLOURS[words["wrong"]])
    if plan.kind == "add":
        step = BESIDE * size * (1 if words["side"] == "right" else -1)
        placed = subject._replace(
            colour=colour,
            shape=shape,
            radius=subject.radius * 0.9,
            centre=subject.centre + np.array([step, 0], np.float32),
        )
        extra = alpha_of(shape, placed.centre, placed.radius, size)
        target = composed(ground, [*alphas, extra], [*paints, new])
        return Scene(target, extra > 0, core_of(shape, placed, size), COLOURS[colour], COLOURS[words["wrong"]])
    # swap and subject_reference: another object in the same place, of the same size
    extra = alpha_of(shape, subject.centre, subject.radius, size)
    target = composed(ground, [extra, *alphas[1:]], [new, *paints[1:]])
    scene = Scene(
        target, (alphas[0] > 0) | (extra > 0), core_of(shape, subject, size), COLOURS[colour], COLOURS[words["wrong"]]
    )
    if plan.kind == "subject_reference" and plan.swapped is not None:
        scene.reference = portrait(colour, shape, subject.radius)
        scene.swapped_reference = portrait(plan.swapped[0], plan.swapped[1], subject.radius)
        scene.swapped_answer = COLOURS[plan.swapped[0]]
    return scene


def _edit_background(
    rng: np.random.Generator, plan: Plan, ground: Plane, alphas: list[Plane], paints: list[Plane]
) -> Scene:
    frames, size = ground.shape[0], ground.shape[1]
    covered = np.maximum.reduce(alphas)
    if plan.kind == "background":
        answer = PLAIN_BACKGROUNDS[plan.words["new"]]
        new = np.broadcast_to(np.array(answer, np.float32), ground.shape)
        scene = Scene(
            composed(new, alphas, paints), covered < 1, covered <= 0, answer, PLAIN_BACKGROUNDS[plan.words["wrong"]]
        )
        return scene
    other = texture_of(rng, ground_colour(rng, vivid=True), size)[:size, :size]
    wrong = texture_of(rng, ground_colour(rng, vivid=True), size)[:size, :size]
    new = np.broadcast_to(other, (frames, *other.shape))
    scene = Scene(composed(new, alphas, paints), covered < 1, covered <= 0)
    scene.reference, scene.swapped_reference = as_bytes(other), as_bytes(wrong)
    return scene


def enriched(rng: np.random.Generator, source: Plane, scene: Scene, size: int) -> tuple[Plane, Scene]:
    """The rich level: one occluder before everything, one camera for both clips, noise of its own in each."""
    frames = source.shape[0]
    width = int(rng.uniform(0.05, 0.1) * size) + 1
    at = rng.uniform(0.15, 0.85) * size
    bar = np.abs(np.arange(size) - at) < width / 2
    grey = float(rng.uniform(20, 80))
    offsets = np.cumsum(rng.normal(0, 0.7, (frames, 2)), 0)
    zooms = 1 + 0.05 * np.sin(np.linspace(0, np.pi, frames) * rng.uniform(0.5, 1.5))
    target = scene.target.copy()
    source = source.copy()
    edit, core = scene.edit_mask.copy(), scene.core_mask.copy()
    for video in (source, target):
        video[:, :, bar] = grey
    edit[:, :, bar] = False
    core[:, :, bar] = False
    for t in range(frames):
        rows, columns = camera_grid(offsets[t], float(zooms[t]), size)
        for video in (source, target):
            video[t] = video[t][rows[:, None], columns[None, :]]
        for mask in (edit, core):
            mask[t] = mask[t][rows[:, None], columns[None, :]]
    source += rng.normal(0, 3.0, source.shape).astype(np.float32)
    target += rng.normal(0, 3.0, target.shape).astype(np.float32)
    scene.target, scene.edit_mask, scene.core_mask = target, edit, core
    return source, scene
