"""What a procedural pair shows and says, before a pixel is drawn: colours, shapes, the edit and its wording."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kiwi.configuration import SourceSettings
from kiwi.dataset.schema import Task

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
class Plan:
    """What a pair shows and says, before a pixel is drawn."""

    kind: str
    prompt: str
    wrong_prompt: str | None
    words: dict[str, str]
    things: tuple[tuple[str, str, float], ...]  # colour, shape, radius; the first one is the object of the edit
    swapped: tuple[str, str] | None
    ground: tuple[int, int, int]
    outlined: bool


def plan_of(settings: SourceSettings, position: int, kind: str) -> Plan:
    rng = np.random.default_rng([settings.seed, position])
    ground = ground_colour(rng)
    names = [name for name, rgb in COLOURS.items() if _apart(rgb, ground) > 95.0]
    picked = _shuffled(rng, names)
    shapes = [_any_of(rng, SHAPES) for _ in range(4)]
    low, high = 0.125 * settings.size, 0.1875 * settings.size
    radii = [float(rng.uniform(low, high)) for _ in range(2)]
    things = [(picked[0], shapes[0], radii[0])]
    if rng.random() < 0.6 or kind == "remove":
        things.append((picked[1], shapes[1], radii[1] * (0.8 if kind == "add" else 1.0)))
    words = {"old": picked[0], "shape": shapes[0], "new": picked[2], "new_shape": shapes[2], "wrong": picked[3]}
    if kind == "swap" and rng.random() < 0.25:
        words["new_shape"] = words["shape"]
    if kind == "background":
        new, wrong = _shuffled(rng, sorted(PLAIN_BACKGROUNDS))[:2]
        words |= {"new": new, "wrong": wrong}
    if kind == "style":
        new, wrong = _shuffled(rng, STYLES)[:2]
        words |= {"new": new, "wrong": wrong}
    words["side"] = "left" if rng.random() < 0.5 else "right"
    template = _any_of(rng, _WORDING["outline" if adds_outline(settings, kind) else kind])
    prompt = _sentence(template, words)
    wrong = _sentence(template, words | {"new": words["wrong"]})
    outlined = adds_outline(settings, kind)
    return Plan(
        kind, prompt, wrong if wrong != prompt else None, words, tuple(things), (picked[3], shapes[3]), ground, outlined
    )


def adds_outline(settings: SourceSettings, kind: str) -> bool:
    """The easy level adds around an object, the rich one beside it.

    An object beside another was not learned by the tiny preset in its time: accuracy 0.15, which is chance, in each
    of four trials (docs/model.md).
    """
    return kind == "add" and settings.level == "easy"


def _sentence(template: str, words: dict[str, str]) -> str:
    said = template.format(**words)
    return said[0].upper() + said[1:] + "."


def ground_colour(rng: np.random.Generator, vivid: bool = False) -> tuple[int, int, int]:
    """The mean colour of a background: muted, so that objects stand out."""
    level = rng.uniform(60, 190)
    tint = rng.normal(0, 26 if vivid else 14, 3)
    mean = sum(tint.tolist()) / 3
    red, green, blue = (int(min(max(level + part - mean, 30), 225)) for part in tint.tolist())
    return red, green, blue


# Plans are made by the thousand: NumPy's calls on three numbers or names would take longer than all else.
def _apart(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    return math.dist(one, other)


def _any_of(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _shuffled(rng: np.random.Generator, names: Sequence[str]) -> list[str]:
    return [names[place] for place in rng.permutation(len(names)).tolist()]
