"""The procedural generator: editing pairs whose every pixel is known, drawn from a seed and a position.

A scene is a textured background that moves and one or two moving objects of distinct colours. Edits are exact and
anchored in content (an object is named by its colour and shape), because a video transformer with rotary positions
has no absolute places to refer to. Masks and answers are for tests and the benchmark; curators never see them.

The `easy` level is what the tiny preset learns. The `rich` level adds an occluder, a shaking and zooming camera,
and sensor noise, to try the curators.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kiwi.configuration import SourceSettings
from kiwi.dataset.schema import EditPair, Task
from kiwi.errors import UsageError

Frames = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (40, 175, 60),
    "blue": (50, 75, 220),
    "yellow": (232, 212, 50),
    "cyan": (60, 212, 220),
    "magenta": (208, 60, 200),
}
PLAIN_BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (236, 236, 236),
    "black": (18, 18, 18),
    "brown": (120, 78, 42),
    "navy": (20, 28, 84),
    "pink": (240, 178, 190),
    "olive": (110, 112, 40),
}
SHAPES = ("circle", "square", "triangle")
STYLES = ("grayscale", "sepia", "inverted", "night")
DATASET_NAME = "procedural"
LICENSE = "CC0-1.0"

KINDS = ("recolour", "swap", "remove", "add", "background", "style", "subject_reference", "background_reference")
IMAGE_KINDS = KINDS[:6]
TASKS: dict[str, Task] = {
    "recolour": Task.LOCAL_CHANGE,
    "swap": Task.LOCAL_CHANGE,
    "subject_reference": Task.LOCAL_CHANGE,
    "add": Task.LOCAL_ADD,
    "remove": Task.LOCAL_REMOVE,
    "background": Task.BACKGROUND_CHANGE,
    "background_reference": Task.BACKGROUND_CHANGE,
    "style": Task.GLOBAL_STYLE,
}
REACH = 1.15  # how far a shape reaches from its centre, in radii
OUTLINE = 5.0  # pixels that an added outline is wide
BESIDE = 0.34  # how far from its anchor an added object stands, as a share of the frame
_VIDEO_BALANCE = (4, 4, 3, 3, 2, 2, 4, 8)  # parts of the videos, in the order of KINDS
_IMAGE_BALANCE = (5, 5, 3, 3, 2, 2)

_WORDING: dict[str, tuple[str, ...]] = {
    "recolour": (
        "make the {old} {shape} {new}",
        "change the colour of the {old} {shape} to {new}",
        "turn the {old} {shape} {new}",
        "recolour the {old} {shape} in {new}",
        "paint the {old} {shape} {new}",
    ),
    "swap": (
        "replace the {old} {shape} with a {new} {new_shape}",
        "swap the {old} {shape} for a {new} {new_shape}",
        "turn the {old} {shape} into a {new} {new_shape}",
        "put a {new} {new_shape} in place of the {old} {shape}",
    ),
    "remove": (
        "remove the {old} {shape}",
        "erase the {old} {shape} from the scene",
        "take away the {old} {shape}",
        "delete the {old} {shape}",
    ),
    "add": (
        "add a {new} {new_shape} to the {side} of the {old} {shape}",
        "put a {new} {new_shape} to the {side} of the {old} {shape}",
        "insert a {new} {new_shape} just {side} of the {old} {shape}",
    ),
    "outline": (
        "add a {new} outline around the {old} {shape}",
        "draw a {new} outline around the {old} {shape}",
        "put a {new} border around the {old} {shape}",
        "surround the {old} {shape} with a {new} border",
    ),
    "background": (
        "replace the background with plain {new}",
        "change the background to plain {new}",
        "make the background {new}",
        "set the scene against a {new} background",
    ),
    "style": (
        "make the whole video {new}",
        "apply the {new} style to this video",
        "render everything in {new} style",
    ),
    "subject_reference": (
        "replace the {old} {shape} with the object in the reference image",
        "swap the {old} {shape} for the object shown in the reference",
        "turn the {old} {shape} into the reference object",
    ),
    "background_reference": (
        "replace the background with the one in the reference image",
        "use the reference image as the new background",
        "change the background to the scene in the reference",
    ),
}


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


class _Thing(NamedTuple):
    colour: str
    shape: str
    radius: float
    centre: npt.NDArray[np.float32]  # [T, 2] as x, y in pixels


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
        prompt=_plan(settings, position, kind).prompt,
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


@dataclass(frozen=True)
class _Plan:
    """What a pair shows and says, before a pixel is drawn."""

    kind: str
    prompt: str
    wrong_prompt: str | None
    words: dict[str, str]
    things: tuple[tuple[str, str, float], ...]  # colour, shape, radius; the first one is the object of the edit
    swapped: tuple[str, str] | None
    ground: tuple[int, int, int]
    outlined: bool


def _plan(settings: SourceSettings, position: int, kind: str) -> _Plan:
    rng = np.random.default_rng([settings.seed, position])
    ground = _ground(rng)
    names = [name for name, rgb in COLOURS.items() if _apart(rgb, ground) > 95.0]
    picked = [str(name) for name in rng.permutation(names)]
    shapes = [str(rng.choice(SHAPES)) for _ in range(4)]
    low, high = 0.125 * settings.size, 0.1875 * settings.size
    radii = [float(rng.uniform(low, high)) for _ in range(2)]
    things = [(picked[0], shapes[0], radii[0])]
    if rng.random() < 0.6 or kind == "remove":
        things.append((picked[1], shapes[1], radii[1] * (0.8 if kind == "add" else 1.0)))
    words = {"old": picked[0], "shape": shapes[0], "new": picked[2], "new_shape": shapes[2], "wrong": picked[3]}
    if kind == "swap" and rng.random() < 0.25:
        words["new_shape"] = words["shape"]
    if kind == "background":
        new, wrong = rng.permutation(sorted(PLAIN_BACKGROUNDS))[:2]
        words |= {"new": str(new), "wrong": str(wrong)}
    if kind == "style":
        new, wrong = rng.permutation(STYLES)[:2]
        words |= {"new": str(new), "wrong": str(wrong)}
    words["side"] = "left" if rng.random() < 0.5 else "right"
    template = str(rng.choice(_WORDING["outline" if _adds_outline(settings, kind) else kind]))
    prompt = _sentence(template, words)
    wrong = _sentence(template, words | {"new": words["wrong"]})
    outlined = _adds_outline(settings, kind)
    return _Plan(
        kind, prompt, wrong if wrong != prompt else None, words, tuple(things), (picked[3], shapes[3]), ground, outlined
    )


def _adds_outline(settings: SourceSettings, kind: str) -> bool:
    """The easy level adds around an object, the rich one beside it.

    An object beside another was not learned by the tiny preset in its time: accuracy 0.15, which is chance, in each
    of four trials (docs/model.md).
    """
    return kind == "add" and settings.level == "easy"


def _sentence(template: str, words: dict[str, str]) -> str:
    said = template.format(**words)
    return said[0].upper() + said[1:] + "."


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
    plan = _plan(settings, position, kind)
    rng = np.random.default_rng([settings.seed, position, 1])
    size = settings.size
    texture = _texture(rng, plan.ground, size)
    ground = _pan(texture, rng, frames, size)
    things = _things(rng, plan, frames, size)
    alphas = [_alpha(thing.shape, thing.centre, thing.radius, size) for thing in things]
    paints = [np.array(COLOURS[thing.colour], np.float32) for thing in things]
    source = _compose(ground, alphas, paints)
    scene = _edit(rng, plan, ground, things, alphas, paints, source)
    if settings.level == "rich":
        source, scene = _enrich(rng, source, scene, size)
    return ProceduralSample(
        kind=kind,
        prompt=plan.prompt,
        fps=settings.fps,
        source=_bytes(source),
        target=_bytes(scene.target),
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


@dataclass
class _Scene:
    target: Plane
    edit_mask: npt.NDArray[np.bool_]
    core_mask: npt.NDArray[np.bool_]
    answer: tuple[int, int, int] | None = None
    answer_wrong: tuple[int, int, int] | None = None
    reference: Frames | None = None
    swapped_reference: Frames | None = None
    swapped_answer: tuple[int, int, int] | None = None


def _edit(
    rng: np.random.Generator,
    plan: _Plan,
    ground: Plane,
    things: list[_Thing],
    alphas: list[Plane],
    paints: list[Plane],
    source: Plane,
) -> _Scene:
    size = ground.shape[1]
    words, subject = plan.words, things[0]
    if plan.kind == "style":
        everywhere = np.ones(ground.shape[:3], bool)
        return _Scene(_styled(source, words["new"]), everywhere, everywhere)
    if plan.kind in ("background", "background_reference"):
        return _edit_background(rng, plan, ground, alphas, paints)
    if plan.kind == "remove":
        target = _compose(ground, alphas[1:], paints[1:])
        return _Scene(target, alphas[0] > 0, alphas[0] >= 1)
    colour, shape = words["new"], words["new_shape"]
    new = np.array(COLOURS[colour], np.float32)
    if plan.kind == "recolour":
        target = _compose(ground, alphas, [new, *paints[1:]])
        return _Scene(
            target, alphas[0] > 0, _core(subject.shape, subject, size), COLOURS[colour], COLOURS[words["wrong"]]
        )
    if plan.kind == "add" and plan.outlined:
        around = _field(subject.shape, subject.centre, subject.radius, size)
        band = np.clip(np.minimum(around + OUTLINE + 0.5, -around - 0.5), 0, 1)
        target = _compose(ground, [*alphas, band], [*paints, new])
        core = (around > 1.5 - OUTLINE) & (around < -1.5)
        return _Scene(target, band > 0, core, COLOURS[colour], COLOURS[words["wrong"]])
    if plan.kind == "add":
        step = BESIDE * size * (1 if words["side"] == "right" else -1)
        placed = subject._replace(
            colour=colour,
            shape=shape,
            radius=subject.radius * 0.9,
            centre=subject.centre + np.array([step, 0], np.float32),
        )
        extra = _alpha(shape, placed.centre, placed.radius, size)
        target = _compose(ground, [*alphas, extra], [*paints, new])
        return _Scene(target, extra > 0, _core(shape, placed, size), COLOURS[colour], COLOURS[words["wrong"]])
    # swap and subject_reference: another object in the same place, of the same size
    extra = _alpha(shape, subject.centre, subject.radius, size)
    target = _compose(ground, [extra, *alphas[1:]], [new, *paints[1:]])
    scene = _Scene(
        target, (alphas[0] > 0) | (extra > 0), _core(shape, subject, size), COLOURS[colour], COLOURS[words["wrong"]]
    )
    if plan.kind == "subject_reference" and plan.swapped is not None:
        scene.reference = _portrait(colour, shape, subject.radius)
        scene.swapped_reference = _portrait(plan.swapped[0], plan.swapped[1], subject.radius)
        scene.swapped_answer = COLOURS[plan.swapped[0]]
    return scene


def _edit_background(
    rng: np.random.Generator, plan: _Plan, ground: Plane, alphas: list[Plane], paints: list[Plane]
) -> _Scene:
    frames, size = ground.shape[0], ground.shape[1]
    covered = np.maximum.reduce(alphas)
    if plan.kind == "background":
        answer = PLAIN_BACKGROUNDS[plan.words["new"]]
        new = np.broadcast_to(np.array(answer, np.float32), ground.shape)
        scene = _Scene(
            _compose(new, alphas, paints), covered < 1, covered <= 0, answer, PLAIN_BACKGROUNDS[plan.words["wrong"]]
        )
        return scene
    other = _texture(rng, _ground(rng, vivid=True), size)[:size, :size]
    wrong = _texture(rng, _ground(rng, vivid=True), size)[:size, :size]
    new = np.broadcast_to(other, (frames, *other.shape))
    scene = _Scene(_compose(new, alphas, paints), covered < 1, covered <= 0)
    scene.reference, scene.swapped_reference = _bytes(other), _bytes(wrong)
    return scene


def _ground(rng: np.random.Generator, vivid: bool = False) -> tuple[int, int, int]:
    """The mean colour of a background: muted, so that objects stand out."""
    level = rng.uniform(60, 190)
    tint = rng.normal(0, 26 if vivid else 14, 3)
    red, green, blue = np.clip(level + tint - tint.mean(), 30, 225)
    return int(red), int(green), int(blue)


def _texture(rng: np.random.Generator, mean: tuple[int, int, int], size: int) -> Plane:
    """A smooth texture of four plane waves, [1.5·size, 1.5·size, 3]: room for the camera to pan."""
    extent = size + size // 2
    axis = np.arange(extent, dtype=np.float32)
    across, down, amplitudes = [], [], []
    for _ in range(4):
        along = 2 * np.pi / (rng.uniform(0.3, 1.0) * size)
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        x = axis * np.float32(along * np.cos(angle)) + np.float32(phase)
        y = axis * np.float32(along * np.sin(angle))
        across += [np.sin(x), np.cos(x)]  # sin(x + y) = sin x · cos y + cos x · sin y
        down += [np.cos(y), np.sin(y)]
        amplitude = rng.uniform(7, 15) + rng.normal(0, 3.5, 3)
        amplitudes += [amplitude, amplitude]
    columns, rows = np.stack(across), np.stack(down)
    weights = np.array(amplitudes, np.float32)
    waves = [(rows * weights[:, channel, None]).T @ columns + np.float32(mean[channel]) for channel in range(3)]
    return np.stack(waves, -1)


def _pan(texture: Plane, rng: np.random.Generator, frames: int, size: int) -> Plane:
    speed = rng.uniform(-2.0, 2.0, 2)
    start = size / 4 - speed * (frames - 1) / 2
    corners = np.rint(start + speed * np.arange(frames)[:, None]).astype(int)
    return np.stack([texture[y : y + size, x : x + size] for x, y in np.clip(corners, 0, texture.shape[0] - size)])


def _things(rng: np.random.Generator, plan: _Plan, frames: int, size: int) -> list[_Thing]:
    """Objects that stay in the frame and apart from each other, moving straight."""
    times = np.linspace(-0.5, 0.5, frames, dtype=np.float32) if frames > 1 else np.zeros(1, np.float32)
    placed: list[_Thing] = []
    taken: list[tuple[npt.NDArray[np.float32], float]] = []
    for index, (colour, shape, radius) in enumerate(plan.things):
        best: tuple[float, _Thing] | None = None
        for _ in range(24):
            travel = rng.uniform(-0.22, 0.22, 2) * size
            low = radius * REACH + 1 + np.abs(travel) / 2
            if index == 0 and plan.outlined:
                low = low + OUTLINE
            high = size - low
            if index == 0 and plan.kind == "add" and not plan.outlined:
                room = BESIDE * size + radius
                if plan.words["side"] == "right":
                    high = high - np.array([room - radius, 0])
                else:
                    low = low + np.array([room - radius, 0])
            middle = rng.uniform(np.minimum(low, high), np.maximum(low, high))
            centre = (middle + times[:, None] * travel).astype(np.float32)
            gap = min(
                (float(np.linalg.norm(centre - other, axis=1).min()) - radius - reach for other, reach in taken),
                default=99.0,
            )
            thing = _Thing(colour, shape, radius, centre)
            if best is None or gap > best[0]:
                best = (gap, thing)
            if gap > 3.0:
                break
        assert best is not None
        if index > 0 and best[0] < 1.0:  # no room without an overlap: the scene has one object
            continue
        placed.append(best[1])
        reach = radius * REACH + (OUTLINE if index == 0 and plan.outlined else 0)
        taken.append((best[1].centre, reach))
        if index == 0 and plan.kind == "add" and not plan.outlined:
            step = BESIDE * size * (1 if plan.words["side"] == "right" else -1)
            taken.append((best[1].centre + np.array([step, 0], np.float32), radius))
    return placed


def _distance(shape: str, dx: Plane, dy: Plane, radius: float) -> Plane:
    """Signed distance to the outline in pixels, positive inside."""
    if shape == "circle":
        return np.asarray(radius - np.sqrt(dx * dx + dy * dy), np.float32)
    if shape == "square":
        return np.asarray(radius * 0.88 - np.maximum(np.abs(dx), np.abs(dy)), np.float32)
    slope = np.float32(0.5)
    radius = radius * 0.9
    sides = (radius * 0.62 + dy * slope - np.abs(dx) * np.float32(0.8944)).astype(np.float32)
    return np.minimum(sides, (radius * 0.85 - dy).astype(np.float32))


def _field(thing_shape: str, centre: npt.NDArray[np.float32], radius: float, size: int) -> Plane:
    axis = np.arange(size, dtype=np.float32)
    dx = axis[None, None, :] - centre[:, 0, None, None]
    dy = axis[None, :, None] - centre[:, 1, None, None]
    return _distance(thing_shape, dx, dy, radius)


def _alpha(shape: str, centre: npt.NDArray[np.float32], radius: float, size: int) -> Plane:
    return np.asarray(np.clip(_field(shape, centre, radius, size) + 0.5, 0, 1), np.float32)


def _core(shape: str, thing: _Thing, size: int) -> npt.NDArray[np.bool_]:
    inside = _field(shape, thing.centre, thing.radius, size)
    return np.asarray(inside > min(2.0, 0.3 * thing.radius))


def _compose(ground: Plane, alphas: list[Plane], paints: list[Plane]) -> Plane:
    """Paints objects over the ground, each inside the box that its whole way covers."""
    out = np.array(ground, np.float32)
    for alpha, paint in zip(alphas, paints, strict=True):
        shadow = alpha.max(0) > 0
        rows, columns = np.flatnonzero(shadow.any(1)), np.flatnonzero(shadow.any(0))
        box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        inside = out[box]
        inside += alpha[box][..., None] * (paint - inside)
    return out


def _styled(frames: Plane, style: str) -> Plane:
    grey = frames @ np.array([0.299, 0.587, 0.114], np.float32)
    if style == "grayscale":
        return np.repeat(grey[..., None], 3, -1)
    if style == "sepia":
        return grey[..., None] * np.array([1.05, 0.86, 0.62], np.float32)
    if style == "inverted":
        return 255 - frames
    return frames * np.array([0.38, 0.45, 0.72], np.float32)


def _portrait(colour: str, shape: str, radius: float) -> Frames:
    """The ideal subject reference: the object on white, tightly cropped."""
    side = int(np.ceil(2 * (radius * REACH + 2)))
    centre = np.full((1, 2), (side - 1) / 2, np.float32)
    alpha = _alpha(shape, centre, radius, side)
    white = np.full((1, side, side, 3), 255, np.float32)
    drawn = _bytes(_compose(white, [alpha], [np.array(COLOURS[colour], np.float32)]))
    return np.ascontiguousarray(drawn[0])


def _enrich(rng: np.random.Generator, source: Plane, scene: _Scene, size: int) -> tuple[Plane, _Scene]:
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
        rows, columns = _camera(offsets[t], float(zooms[t]), size)
        for video in (source, target):
            video[t] = video[t][rows[:, None], columns[None, :]]
        for mask in (edit, core):
            mask[t] = mask[t][rows[:, None], columns[None, :]]
    source += rng.normal(0, 3.0, source.shape).astype(np.float32)
    target += rng.normal(0, 3.0, target.shape).astype(np.float32)
    scene.target, scene.edit_mask, scene.core_mask = target, edit, core
    return source, scene


def _camera(
    offset: npt.NDArray[np.float64], zoom: float, size: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    axis = (np.arange(size) - size / 2) / zoom + size / 2
    rows = np.clip(np.rint(axis + offset[1]), 0, size - 1).astype(np.intp)
    columns = np.clip(np.rint(axis + offset[0]), 0, size - 1).astype(np.intp)
    return rows, columns


def _apart(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    return float(np.linalg.norm(np.subtract(one, other)))


def _bytes(frames: Plane) -> Frames:
    return np.asarray(np.clip(np.rint(frames), 0, 255), np.uint8)
