"""Deduplication is exact: it finds what a plain double loop finds, straight and mirrored, and keeps the first."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kiwi.configuration import SourceSettings
from kiwi.curation.curators.classical_deduplicate import COLOUR, COSINE, LOW, ClassicalDeduplicator
from kiwi.sources.procedural import draw

CURATOR = ClassicalDeduplicator(4.0)


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    total = sum(
        cv2.resize(rng.normal(0, 60, (cells, cells, 3)).astype(np.float32), (96, 96), interpolation=cv2.INTER_CUBIC)
        for cells in (3, 7, 20)
    )
    return np.clip(total + 128, 0, 255).astype(np.uint8)


def brute_force(prints: list[bytes], distance: float) -> list[int]:
    """The definition, row by row: hash, colour and direction agree with an earlier kept row, straight or mirrored."""
    values = [np.frombuffer(data, "<f2").astype(np.float32).reshape(3, LOW, LOW) for data in prints]

    def signs(value: np.ndarray) -> np.ndarray:
        light = value[0].ravel()[1:]
        return light > np.median(light)

    repeats = [-1] * len(values)
    for later, value in enumerate(values):
        for earlier in range(later):
            if repeats[earlier] >= 0 or repeats[later] >= 0:
                continue
            for turned in (value, value * np.where(np.arange(LOW) % 2, -1, 1)):
                other = values[earlier]
                length = np.linalg.norm(turned) * np.linalg.norm(other)
                close = (signs(turned) != signs(other)).sum() <= distance
                alike = np.linalg.norm(turned - other) <= COLOUR and (turned * other).sum() >= COSINE * length
                if close and (alike or (length < 1 and np.linalg.norm(turned - other) <= COLOUR)):
                    repeats[later] = earlier
    return repeats


def test_recompressed_resized_and_mirrored_copies_are_duplicates_and_others_are_not() -> None:
    pictures = [picture(seed) for seed in range(12)]
    copies = [
        cv2.imdecode(cv2.imencode(".jpg", pictures[0], [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR),
        cv2.resize(pictures[1], (48, 48), interpolation=cv2.INTER_AREA),
        np.ascontiguousarray(pictures[2][:, ::-1]),
        cv2.cvtColor(pictures[3], cv2.COLOR_RGB2BGR),  # the same drawing in other colours
    ]
    prints = [CURATOR.fingerprint(image) for image in pictures + copies]
    assert CURATOR.keep_first([prints]).tolist() == [-1] * 12 + [0, 1, 2, -1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_blocks_find_what_the_double_loop_finds(rows: list[tuple[int, bool, int]]) -> None:
    prints = []
    for seed, mirrored, noise in rows:
        image = picture(seed)
        image = np.ascontiguousarray(image[:, ::-1]) if mirrored else image
        shift = np.random.default_rng(noise).normal(0, 8 * noise, image.shape)
        prints.append(CURATOR.fingerprint(np.clip(image + shift, 0, 255).astype(np.uint8)))
    expected = brute_force(prints, 4.0)
    for block in (3, 7, 2048):
        assert ClassicalDeduplicator(4.0, block=block).keep_first([prints]).tolist() == expected


def test_the_same_object_in_two_scenes_is_a_duplicate_by_reference_but_not_by_quadruplet() -> None:
    mug = CURATOR.fingerprint(picture(1))
    scenes = [CURATOR.fingerprint(picture(seed)) for seed in (2, 3)]
    assert CURATOR.keep_first([[mug, mug]]).tolist() == [-1, 0]
    assert CURATOR.keep_first([[mug, mug], scenes]).tolist() == [-1, -1]


def test_procedural_scenes_are_no_duplicates_of_each_other() -> None:
    source = SourceSettings(clips=300, images=0)
    prints = [CURATOR.fingerprint(draw(source, position, "recolour", 1).target[0]) for position in range(300)]
    assert (CURATOR.keep_first([prints]) < 0).all()
