"""The procedural generator: pixels known exactly, edits where their masks say, instructions with one right answer."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest

from kiwi.configuration import SourceSettings
from kiwi.dataset.schema import REFERENCE_TASKS
from kiwi.errors import UsageError
from kiwi.sources import procedural
from kiwi.sources.procedural import (
    COLOURS,
    IMAGE_KINDS,
    KINDS,
    PLAIN_BACKGROUNDS,
    SHAPES,
    STYLES,
    TASKS,
    ProceduralSample,
    draw,
    list_procedural,
    listed_kinds,
    render_pair,
)

EASY = SourceSettings(seed=11, clips=40, images=36)
RICH = EASY.model_copy(update={"level": "rich"})
POSITIONS = range(6)
COLOURED = ("recolour", "swap", "add", "subject_reference", "background")
LOCAL = ("recolour", "swap", "remove", "add", "subject_reference")
NOISE = 30  # the rich level's noise has a deviation of 3 in each clip


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference of a pixel's channels. [..., 3] -> [...]"""
    return np.abs(one.astype(int) - other.astype(int)).max(-1)


def pixels(sample: ProceduralSample) -> str:
    hashing = hashlib.sha256()
    for image in (sample.source, sample.target, sample.edit_mask, sample.core_mask, sample.reference):
        hashing.update(b"-" if image is None else image.tobytes())
    return hashing.hexdigest()


@pytest.mark.parametrize("settings", [EASY, RICH], ids=["easy", "rich"])
@pytest.mark.parametrize("kind", KINDS)
def test_settings_and_position_alone_decide_every_pixel(settings: SourceSettings, kind: str) -> None:
    first = draw(settings, 4, kind, 5)
    draw(settings, 5, kind, 5)  # what else was drawn plays no part
    assert pixels(draw(settings, 4, kind, 5)) == pixels(first)
    assert pixels(draw(settings, 5, kind, 5)) != pixels(first)
    assert pixels(draw(settings.model_copy(update={"seed": 12}), 4, kind, 5)) != pixels(first)


def test_a_position_renders_what_the_listing_says_of_it() -> None:
    kinds, pairs = listed_kinds(EASY), list_procedural(EASY)
    for position in (0, 7, 39, 40, 75):
        media, kind = kinds[position]
        sample, pair = render_pair(EASY, position), pairs[position]
        assert (pair.position, pair.media, pair.edit_type, pair.prompt) == (position, media, kind, sample.prompt)
        assert (sample.kind, pair.task) == (kind, TASKS[kind])
        assert sample.source.shape == sample.target.shape == (1 if media == "image" else 9, 64, 64, 3)
        assert pair.needs_reference == (sample.reference is not None)
    assert len({pair.pair_id for pair in pairs}) == len(pairs) == 76


@pytest.mark.parametrize("position", [-1, 76])
def test_a_position_that_is_not_listed_is_refused(position: int) -> None:
    with pytest.raises(UsageError, match=f"no pair {position}"):
        render_pair(EASY, position)


def test_a_kind_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="no procedural edit kind 'explode'") as error:
        render_pair(EASY, 0, "explode")
    assert "recolour" in error.value.remedy


VIDEO_PARTS = dict(zip(KINDS, procedural._VIDEO_BALANCE, strict=True))
IMAGE_PARTS = dict(zip(IMAGE_KINDS, procedural._IMAGE_BALANCE, strict=True))


@pytest.mark.parametrize(("clips", "images"), [(23, 19), (100, 61), (10, 7), (1, 0), (0, 0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_kinds_are_balanced_as_closely_as_whole_numbers_allow(clips: int, images: int, seed: int) -> None:
    listed = listed_kinds(SourceSettings(seed=seed, clips=clips, images=images))
    assert [media for media, _ in listed] == ["video"] * clips + ["image"] * images
    for media, count, parts in (("video", clips, VIDEO_PARTS), ("image", images, IMAGE_PARTS)):
        counted = Counter(kind for of, kind in listed if of == media)
        assert sum(counted.values()) == count
        assert all(abs(counted[kind] - count * part / sum(parts.values())) < 1 for kind, part in parts.items())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_balance_is_exact_where_the_parts_go_into_the_number(seed: int) -> None:
    videos, images = 3 * sum(VIDEO_PARTS.values()), 2 * sum(IMAGE_PARTS.values())
    listed = Counter(listed_kinds(SourceSettings(seed=seed, clips=videos, images=images)))
    assert listed == {("video", kind): 3 * part for kind, part in VIDEO_PARTS.items()} | {
        ("image", kind): 2 * part for kind, part in IMAGE_PARTS.items()
    }


def test_seeds_shuffle_the_order_of_kinds() -> None:
    orders = {tuple(listed_kinds(EASY.model_copy(update={"seed": seed}))) for seed in range(4)}
    assert len(orders) == 4


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_an_easy_edit_changes_nothing_outside_its_mask(kind: str, frames: int) -> None:
    for position in POSITIONS:
        sample = draw(EASY, position, kind, frames)
        changed = (sample.source != sample.target).any(-1)
        assert not changed[~sample.edit_mask].any()
        assert changed.any(axis=(1, 2)).all()  # and in every frame something inside


@pytest.mark.parametrize("kind", COLOURED)
def test_the_core_of_an_easy_target_has_the_answers_colour(kind: str) -> None:
    for position in POSITIONS:
        sample = draw(EASY, position, kind, 9)
        assert sample.answer is not None
        assert sample.core_mask.any(axis=(1, 2)).all()
        assert not (sample.core_mask & ~sample.edit_mask).any()
        assert (sample.target[sample.core_mask] == sample.answer).all()
        assert (sample.source[sample.core_mask] != sample.answer).any(-1).all()
        palette = PLAIN_BACKGROUNDS if kind == "background" else COLOURS
        assert sample.answer == palette[sample.words["new"]]


@pytest.mark.parametrize("kind", ["remove", "style", "background_reference"])
def test_kinds_without_one_colour_as_answer_give_none(kind: str) -> None:
    sample = draw(EASY, 1, kind, 5)
    assert sample.answer is None
    assert sample.answer_wrong is None


def test_a_removed_object_leaves_the_other_one_and_the_background() -> None:
    for position in POSITIONS:
        sample = draw(EASY, position, "remove", 9)
        old = COLOURS[sample.words["old"]]
        assert (sample.source[sample.core_mask] == old).all()
        assert not (sample.target == old).all(-1).any()


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_one_function_of_the_pixel(style: str) -> None:
    sample = next(s for s in (draw(EASY, p, "style", 1) for p in range(40)) if s.words["new"] == style)
    assert style in sample.prompt.lower()
    answers: dict[tuple[int, ...], np.ndarray] = {}
    for before, after in zip(sample.source.reshape(-1, 3), sample.target.reshape(-1, 3), strict=True):
        first = answers.setdefault(tuple(before.tolist()), after)
        assert apart(first, after) <= 2  # pixels were rounded after the style was applied, not before


@pytest.mark.parametrize("kind", KINDS)
def test_the_wrong_prompt_is_the_same_sentence_with_another_answer(kind: str) -> None:
    samples = [draw(EASY, position, kind, 1) for position in POSITIONS]
    if kind in ("remove", "subject_reference", "background_reference"):
        assert {sample.wrong_prompt for sample in samples} == {None}
        return
    for sample in samples:
        assert sample.wrong_prompt is not None
        said, wrong = sample.prompt.split(), sample.wrong_prompt.split()
        assert len(said) == len(wrong)
        different = [(a.strip("."), b.strip(".")) for a, b in zip(said, wrong, strict=True) if a != b]
        assert different == [(sample.words["new"], sample.words["wrong"])]
        if kind != "style":
            assert sample.answer_wrong is not None
            assert sample.answer_wrong != sample.answer
            assert sample.answer_wrong in ((PLAIN_BACKGROUNDS | COLOURS)[sample.words["wrong"]],)


@pytest.mark.parametrize("kind", LOCAL)
def test_an_instruction_names_its_object_by_colour_and_shape_unambiguously(kind: str) -> None:
    for position in POSITIONS:
        sample = draw(EASY, position, kind, 1)
        assert f"{sample.words['old']} {sample.words['shape']}" in sample.prompt
        inside = np.zeros(sample.edit_mask.shape, bool) if kind == "add" else sample.edit_mask
        has_old = (sample.source == COLOURS[sample.words["old"]]).all(-1)
        assert has_old.any()
        if kind != "add":  # no other object of that colour stands elsewhere
            assert not (has_old & ~inside).any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_object_added_at_the_rich_level_stands_on_the_side_that_the_instruction_says(side: str) -> None:
    samples = [draw(RICH, position, "add", 5) for position in range(24)]
    told = 0
    for sample in samples:
        if sample.words["side"] == side and "to the" in sample.prompt:
            old = np.array(COLOURS[sample.words["old"]])
            assert f"to the {side} of the {sample.words['old']} {sample.words['shape']}" in sample.prompt
            anchor = apart(sample.source, np.broadcast_to(old, sample.source.shape)) < NOISE
            columns = np.arange(64)[None, None]
            if min(anchor.sum(), sample.core_mask.sum()) > 100:  # else the occluder hides one of them
                step = (columns * sample.core_mask).sum() / sample.core_mask.sum()
                step -= (columns * anchor).sum() / anchor.sum()
                assert 12 < (step if side == "right" else -step) < 32
                told += 1
    assert told >= 3


def test_an_outline_added_at_the_easy_level_runs_around_its_object() -> None:
    for position in POSITIONS:
        sample = draw(EASY, position, "add", 9)
        assert re.search(r"outline|border", sample.prompt)
        old = (sample.source == COLOURS[sample.words["old"]]).all(-1)
        assert old.any()
        assert not (old & sample.edit_mask).any()
        for mask, inside in zip(sample.core_mask, old, strict=True):
            rows, columns = np.nonzero(inside)
            row, column = int(rows.mean()), int(columns.mean())
            rays = (mask[:row, column], mask[row:, column], mask[row, :column], mask[row, column:])
            assert sum(bool(ray.any()) for ray in rays) >= 3  # one side may be cut by the frame


EVERY_SHAPE = ["circle", "square", "triangle"]


@lru_cache(maxsize=1)
def removals() -> list[ProceduralSample]:
    """Samples whose edit mask is one whole moving object."""
    return [draw(EASY, position, "remove", 9) for position in range(150)]


@pytest.mark.parametrize("shape", EVERY_SHAPE)
def test_objects_stay_whole_in_the_frame(shape: str) -> None:
    for sample in removals():
        if sample.words["shape"] == shape:
            assert not sample.edit_mask[:, 0].any()
            assert not sample.edit_mask[:, :, 0].any()
            assert not sample.core_mask[:, -1].any()  # the soft outline may end on the last row
            assert not sample.core_mask[:, :, -1].any()


def test_objects_move_straight() -> None:
    rows, columns = np.mgrid[:64, :64]
    travelled = []
    for sample in removals():
        centres = np.array([[(columns * m).sum(), (rows * m).sum()] / m.sum() for m in sample.core_mask])
        assert np.abs(np.diff(centres, 2, axis=0)).max() < 1.5  # no turn and no jump, to half a pixel a frame
        travelled.append(np.linalg.norm(centres[-1] - centres[0]))
    assert max(travelled) > 8
    assert max(travelled) < 0.22 * 64 * 2**0.5 + 2


def test_some_objects_and_backgrounds_move() -> None:
    moves = 0
    for position in POSITIONS:
        sample = draw(EASY, position, "remove", 9)
        assert not np.array_equal(sample.target[0], sample.target[-1])  # the background alone
        moves += not np.array_equal(sample.core_mask[0], sample.core_mask[-1])
    assert moves >= len(POSITIONS) - 1


def test_a_subject_reference_shows_the_answer_and_the_instruction_does_not_say_it() -> None:
    for position in POSITIONS:
        sample = draw(EASY, position, "subject_reference", 1)
        assert sample.reference is not None
        assert sample.swapped_reference is not None
        assert sample.answer is not None
        assert sample.words["new"] not in re.findall(r"[a-z]+", sample.prompt.lower())
        for image, colour in ((sample.reference, sample.answer), (sample.swapped_reference, sample.swapped_answer)):
            assert tuple(image[image.shape[0] // 2, image.shape[1] // 2].tolist()) == colour
            assert (image[0, 0] == 255).all()
            assert 0.2 < (image == colour).all(-1).mean() < 0.8
        assert sample.swapped_answer not in (sample.answer, COLOURS[sample.words["old"]])
        drawn = (sample.target == sample.answer).all(-1).sum()
        shown = (sample.reference == sample.answer).all(-1).sum()
        assert 0.85 < shown / drawn < 1.15  # the same object in the same size


@pytest.mark.parametrize("shape", EVERY_SHAPE)
def test_a_subject_reference_shows_its_object_whole(shape: str) -> None:
    samples = [draw(EASY, position, "subject_reference", 1) for position in range(40)]
    images = [sample.reference for sample in samples if sample.words["new_shape"] == shape]
    assert images
    for image in images:
        assert image is not None
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert (edge > 250).all()


def test_a_background_reference_is_the_background_of_the_target() -> None:
    for position in POSITIONS:
        sample = draw(EASY, position, "background_reference", 9)
        assert sample.reference is not None
        assert sample.swapped_reference is not None
        shown = np.broadcast_to(sample.reference, sample.target.shape)
        assert (sample.target[sample.core_mask] == shown[sample.core_mask]).all()
        assert apart(sample.source, sample.target)[sample.core_mask].mean() > 10
        assert apart(sample.swapped_reference, sample.reference).mean() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_only_tasks_that_curation_accepts_for_references_have_reference_kinds(kind: str) -> None:
    sample = draw(EASY, 0, kind, 1)
    assert (sample.reference is not None) == kind.endswith("_reference")
    assert sample.reference is None or TASKS[kind] in REFERENCE_TASKS


@pytest.mark.parametrize("kind", KINDS)
def test_the_rich_level_is_another_film_with_masks_that_still_fit(kind: str) -> None:
    for position in POSITIONS:
        easy, rich = draw(EASY, position, kind, 9), draw(RICH, position, kind, 9)
        assert rich.prompt == easy.prompt or kind == "add"
        assert apart(rich.source, easy.source).mean() > 3
        outside = apart(rich.source, rich.target)[~rich.edit_mask]
        assert outside.size == 0 or outside.max() < NOISE
        assert not (rich.core_mask & ~rich.edit_mask).any()
        if rich.answer is not None and rich.core_mask.any():
            assert np.abs(rich.target[rich.core_mask].astype(int) - rich.answer).max() < NOISE


def test_the_rich_level_has_an_occluder_noise_and_a_camera_that_moves() -> None:
    moved = 0
    for position in range(10):
        sample = draw(RICH, position, "style", 9)
        hidden = ~sample.edit_mask  # a style covers everything but the occluder
        assert hidden.any(axis=(1, 2)).all()
        for clip in (sample.source, sample.target):
            assert 1 < clip[hidden].astype(float).std(0).mean() < 5  # one grey, and noise
        assert apart(sample.source, sample.target)[hidden].mean() > 1  # of its own in each clip
        moved += not np.array_equal(hidden[0], hidden[-1])
    assert moved >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_instructions_vary_in_their_wording(kind: str) -> None:
    settings = SourceSettings(seed=2, clips=0, images=0)
    answers = {*COLOURS, *PLAIN_BACKGROUNDS, *SHAPES, *STYLES, "left", "right"}
    wordings = Counter()
    for position in range(60):
        words = re.findall(r"[a-z]+", draw(settings, position, kind, 1).prompt.lower())
        wordings[" ".join("_" if word in answers else word for word in words)] += 1
    assert len(wordings) >= 3
    assert max(wordings.values()) < 40


def test_listing_renders_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a pixel was drawn")

    for name in ("texture_of", "alpha_of", "composed"):
        monkeypatch.setattr(procedural, name, refused)
    assert len(list_procedural(EASY)) == 76
    with pytest.raises(AssertionError, match="a pixel was drawn"):
        render_pair(EASY, 0)
