"""Draws procedural scenes: a moving texture, moving shapes over it, and the camera's grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kiwi.sources.scene_plans import COLOURS, Plan

Frames = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

REACH = 1.15  # how far a shape reaches from its centre, in radii
OUTLINE = 5.0  # pixels that an added outline is wide
BESIDE = 0.34  # how far from its anchor an added object stands, as a share of the frame


class Thing(NamedTuple):
    colour: str
    shape: str
    radius: float
    centre: npt.NDArray[np.float32]  # [T, 2] as x, y in pixels


def texture_of(rng: np.random.Generator, mean: tuple[int, int, int], size: int) -> Plane:
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


def panned(texture: Plane, rng: np.random.Generator, frames: int, size: int) -> Plane:
    speed = rng.uniform(-2.0, 2.0, 2)
    start = size / 4 - speed * (frames - 1) / 2
    corners = np.rint(start + speed * np.arange(frames)[:, None]).astype(int)
    return np.stack([texture[y : y + size, x : x + size] for x, y in np.clip(corners, 0, texture.shape[0] - size)])


def placed_things(rng: np.random.Generator, plan: Plan, frames: int, size: int) -> list[Thing]:
    """Objects that stay in the frame and apart from each other, moving straight."""
    times = np.linspace(-0.5, 0.5, frames, dtype=np.float32) if frames > 1 else np.zeros(1, np.float32)
    placed: list[Thing] = []
    taken: list[tuple[npt.NDArray[np.float32], float]] = []
    for index, (colour, shape, radius) in enumerate(plan.things):
        best: tuple[float, Thing] | None = None
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
            thing = Thing(colour, shape, radius, centre)
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


def distance_field(thing_shape: str, centre: npt.NDArray[np.float32], radius: float, size: int) -> Plane:
    axis = np.arange(size, dtype=np.float32)
    dx = axis[None, None, :] - centre[:, 0, None, None]
    dy = axis[None, :, None] - centre[:, 1, None, None]
    return _distance(thing_shape, dx, dy, radius)


def alpha_of(shape: str, centre: npt.NDArray[np.float32], radius: float, size: int) -> Plane:
    return np.asarray(np.clip(distance_field(shape, centre, radius, size) + 0.5, 0, 1), np.float32)


def core_of(shape: str, thing: Thing, size: int) -> npt.NDArray[np.bool_]:
    inside = distance_field(shape, thing.centre, thing.radius, size)
    return np.asarray(inside > min(2.0, 0.3 * thing.radius))


def composed(ground: Plane, alphas: list[Plane], paints: list[Plane]) -> Plane:
    """Paints objects over the ground, each inside the box that its whole way covers."""
    out = np.array(ground, np.float32)
    for alpha, paint in zip(alphas, paints, strict=True):
        shadow = alpha.max(0) > 0
        rows, columns = np.flatnonzero(shadow.any(1)), np.flatnonzero(shadow.any(0))
        box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        inside = out[box]
        inside += alpha[box][..., None] * (paint - inside)
    return out


def styled(frames: Plane, style: str) -> Plane:
    grey = frames @ np.array([0.299, 0.587, 0.114], np.float32)
    if style == "grayscale":
        return np.repeat(grey[..., None], 3, -1)
    if style == "sepia":
        return grey[..., None] * np.array([1.05, 0.86, 0.62], np.float32)
    if style == "inverted":
        return 255 - frames
    return frames * np.array([0.38, 0.45, 0.72], np.float32)


def portrait(colour: str, shape: str, radius: float) -> Frames:
    """The ideal subject reference: the object on white, tightly cropped."""
    side = int(np.ceil(2 * (radius * REACH + 2)))
    centre = np.full((1, 2), (side - 1) / 2, np.float32)
    alpha = alpha_of(shape, centre, radius, side)
    white = np.full((1, side, side, 3), 255, np.float32)
    drawn = as_bytes(composed(white, [alpha], [np.array(COLOURS[colour], np.float32)]))
    return np.ascontiguousarray(drawn[0])


def camera_grid(
    offset: npt.NDArray[np.float64], zoom: float, size: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    axis = (np.arange(size) - size / 2) / zoom + size / 2
    rows = np.clip(np.rint(axis + offset[1]), 0, size - 1).astype(np.intp)
    columns = np.clip(np.rint(axis + offset[0]), 0, size - 1).astype(np.intp)
    return rows, columns


def as_bytes(frames: Plane) -> Frames:
    return np.asarray(np.clip(np.rint(frames), 0, 255), np.uint8)
