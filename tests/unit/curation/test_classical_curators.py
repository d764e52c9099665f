"""The classical curators find what was changed, cut it out, and refuse what has no reference."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kiwi.configuration import CurationSettings, SourceSettings
from kiwi.curation.curators import registry
from kiwi.curation.curators.classical_change import change_map, kept_foreground, kind_of_change
from kiwi.curation.curators.classical_segment import without_specks
from kiwi.dataset.schema import Reason, Task
from kiwi.errors import UsageError
from kiwi.sources.procedural import TASKS, ProceduralSample, draw, listed_kinds

SETTINGS = CurationSettings()


def photograph(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    """A picture with structure at every scale, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 12, 40, 120):
        noise = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * (150 / cells**0.5)
    return np.clip(total + rng.uniform(80, 170, 3), 0, 255).astype(np.uint8)


def with_disc(image: np.ndarray, colour: tuple[int, int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    return cv2.circle(image.copy(), centre, radius, colour, -1)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def samples(level: str, count: int) -> list[ProceduralSample]:
    settings = SourceSettings(level=level, clips=count, images=0)
    return [draw(settings, place, kind, 2) for place, (_, kind) in enumerate(listed_kinds(settings))]


def test_a_local_edit_is_found_where_it_is() -> None:
    source = photograph(1)
    target = with_disc(source, (230, 30, 40), (200, 90), 30)
    grounding = registry.grounder(SETTINGS).ground_pair(source, target, Task.LOCAL_ADD)
    assert grounding.reason is None
    assert grounding.box is not None
    assert np.allclose(grounding.box, (170 / 320, 60 / 240, 230 / 320, 120 / 240), atol=0.02)


def test_a_local_edit_is_found_under_drift_and_recompression() -> None:
    source = photograph(2)
    edited = with_disc(source, (230, 30, 40), (200, 90), 30)
    drift = np.array([[1.01, 0, 3.0], [0, 1.01, -2.0]])
    moved = cv2.warpAffine(edited, drift, (320, 240), borderMode=cv2.BORDER_REFLECT)
    target = cv2.imdecode(cv2.imencode(".jpg", moved, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    grounding = registry.grounder(SETTINGS).ground_pair(source, target, Task.LOCAL_ADD)
    assert grounding.box is not None
    centre = (1.01 * 200 + 3.0) / 320, (1.01 * 90 - 2.0) / 240
    found = (grounding.box[0] + grounding.box[2]) / 2, (grounding.box[1] + grounding.box[3]) / 2
    assert np.allclose(found, centre, atol=0.03)
    assert grounding.measures["area"] < 0.08


def test_no_edit_gives_no_region() -> None:
    source = cv2.GaussianBlur(photograph(3), (0, 0), 2.0)
    again = cv2.imdecode(cv2.imencode(".jpg", source, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], cv2.IMREAD_COLOR)
    assert registry.grounder(SETTINGS).ground_pair(source, again, Task.LOCAL_CHANGE).reason is Reason.NO_REGION


@pytest.mark.parametrize("task", [Task.LOCAL_CHANGE, Task.BACKGROUND_CHANGE])
def test_a_global_style_is_a_global_change_whatever_it_is_declared_as(task: Task) -> None:
    source = photograph(4)
    target = (255 - source.astype(np.float32) * np.array([0.9, 0.6, 0.5])).astype(np.uint8)
    grounding = registry.grounder(SETTINGS).ground_pair(source, target, task)
    assert (grounding.reason, grounding.box) == (Reason.GLOBAL_CHANGE, None)


def test_a_background_change_is_found_by_what_stayed() -> None:
    source, elsewhere, subject = photograph(5), photograph(6), photograph(7)
    mask = cv2.ellipse(np.zeros((240, 320), np.uint8), (160, 140), (50, 80), 0, 0, 360, 1, -1) > 0
    source[mask] = subject[mask]
    elsewhere[mask] = subject[mask]
    assert kind_of_change(change_map(source, elsewhere)) == "background"
    grounding = registry.grounder(SETTINGS).ground_pair(source, elsewhere, Task.BACKGROUND_CHANGE)
    assert grounding.reason is None
    assert grounding.box is not None
    assert grounding.kind == "foreground"
    found = registry.segmenter(SETTINGS).segment_pair(source, elsewhere, grounding.box, grounding.kind)
    assert found.mask is not None
    assert iou(found.mask, mask) > 0.85
    made = registry.synthesizer(SETTINGS).synthesize_frame(elsewhere, found.mask, grounding.kind)
    assert made.image is not None
    assert made.origin == "inpaint_classical"
    assert np.array_equal(made.image[:20], elsewhere[:20])
    assert np.abs(made.image[mask].astype(int) - elsewhere[mask]).mean() > 10


@pytest.mark.parametrize(("level", "floor"), [("easy", 0.85), ("rich", 0.8)])
def test_procedural_edits_are_segmented_as_they_were_drawn(level: str, floor: float) -> None:
    grounder, segmenter = registry.grounder(SETTINGS), registry.segmenter(SETTINGS)
    overlaps = []
    for sample in samples(level, 80):
        if sample.kind not in ("recolour", "add", "swap"):
            continue
        source, target = sample.source[0], sample.target[0]
        grounding = grounder.ground_pair(source, target, TASKS[sample.kind])
        assert grounding.box is not None
        found = segmenter.segment_pair(source, target, grounding.box, grounding.kind)
        assert found.mask is not None
        overlaps.append(iou(found.mask, sample.edit_mask[0]))
    assert np.median(overlaps) > floor


def test_a_subject_reference_is_the_object_on_white() -> None:
    source = photograph(8)
    target = with_disc(source, (20, 220, 60), (100, 120), 24)
    mask = with_disc(np.zeros_like(source), (1, 1, 1), (100, 120), 24)[..., 0] > 0
    made = registry.synthesizer(SETTINGS).synthesize_frame(target, mask, "object")
    assert made.image is not None
    assert made.origin == "crop_classical"
    height, width = made.image.shape[:2]
    assert 49 <= height <= 56
    assert 49 <= width <= 56
    assert (made.image[0] == 255).all()
    assert tuple(made.image[height // 2, width // 2]) == (20, 220, 60)


def test_extreme_shapes_and_sizes_are_refused_before_a_reference_is_made() -> None:
    image = photograph(9)
    sliver, speck = np.zeros((240, 320), bool), np.zeros((240, 320), bool)
    sliver[100:110, 20:300] = True
    speck[100:105, 100:105] = True
    synthesizer = registry.synthesizer(SETTINGS)
    assert synthesizer.synthesize_frame(image, sliver, "object").reason is Reason.EXTREME_ASPECT
    assert synthesizer.synthesize_frame(image, speck, "object").reason is Reason.EXTREME_RESOLUTION


def test_another_samples_reference_is_inconsistent() -> None:
    verifier = registry.verifier(SETTINGS)
    right, wrong = [], []
    for sample in samples("easy", 120):
        if sample.reference is None or sample.swapped_reference is None:
            continue
        kind = "object" if sample.kind == "subject_reference" else "foreground"
        for reference, verdicts in ((sample.reference, right), (sample.swapped_reference, wrong)):
            verdict = verifier.verify_reference(reference, sample.source[0], sample.target[0], None, kind)
            verdicts.append(verdict.reason)
    assert right.count(None) == len(right) >= 40
    assert wrong.count(Reason.REFERENCE_INCONSISTENT) >= 0.95 * len(wrong)


def test_an_empty_reference_is_degenerate() -> None:
    source = photograph(10)
    target = with_disc(source, (230, 30, 40), (200, 90), 30)
    blank = np.full((60, 60, 3), 255, np.uint8)
    verdict = registry.verifier(SETTINGS).verify_reference(blank, source, target, None, "object")
    assert verdict.reason is Reason.REFERENCE_DEGENERATE


def clip(image: np.ndarray, frames: int = 9) -> np.ndarray:
    """A slow pan over an image."""
    return np.stack([image[:, place : place + 256] for place in range(frames)])


def damage(kind: str, frames: np.ndarray) -> np.ndarray:
    if kind == "blurred":
        return np.stack([cv2.GaussianBlur(frame, (0, 0), 6) for frame in frames])
    if kind == "flickering":
        return (frames * np.where(np.arange(len(frames)) % 2, 0.6, 1.0)[:, None, None, None]).astype(np.uint8)
    if kind == "unrelated":
        return clip(photograph(99))
    return np.zeros_like(frames)


def test_a_clean_edit_scores_high_and_its_score_is_called_a_heuristic() -> None:
    source = clip(photograph(11))
    target = np.stack([with_disc(frame, (230, 30, 40), (150, 90), 30) for frame in source])
    score = registry.scorer(SETTINGS).score_pair(source, target, Task.LOCAL_ADD)
    assert score.reason is None
    assert score.overall > 9
    assert score.name == "heuristic_score"


@pytest.mark.parametrize("kind", ["blurred", "flickering", "unrelated", "black"])
def test_a_damaged_target_scores_below_the_threshold(kind: str) -> None:
    source = clip(photograph(11))
    target = np.stack([with_disc(frame, (230, 30, 40), (150, 90), 30) for frame in source])
    score = registry.scorer(SETTINGS).score_pair(source, damage(kind, target), Task.LOCAL_ADD)
    assert score.overall < SETTINGS.min_score


def test_an_unedited_target_is_no_visible_edit() -> None:
    source = clip(photograph(12))
    assert registry.scorer(SETTINGS).score_pair(source, source, Task.OTHER).reason is Reason.NO_VISIBLE_EDIT


def test_an_unknown_curator_is_one_clear_error() -> None:
    with pytest.raises(UsageError, match=r"curation\.scorer: no curator named 'editscore'"):
        registry.scorer(CurationSettings(scorer="editscore"))


def drawing(seed: int, side: int = 96) -> np.ndarray:
    """A flat drawing in colours of one lightness, so that inverting them swaps light and dark; nine equal frames."""
    rng = np.random.default_rng(seed)

    def colour() -> np.ndarray:
        while True:
            found = rng.integers(0, 256, 3)
            if 110 < found @ [0.299, 0.587, 0.114] < 145:
                return found

    picture = np.zeros((side, side, 3), np.uint8) + colour().astype(np.uint8)
    for _ in range(5):
        top, left = rng.integers(0, side - 30, 2)
        picture[top : top + 26, left : left + 26] = colour()
    return np.repeat(picture[None], 9, axis=0)


def test_an_inverted_drawing_is_the_same_drawing_and_another_drawing_is_not() -> None:
    scorer = registry.scorer(SETTINGS)
    inverted = [scorer.score_pair(drawing(seed), 255 - drawing(seed), Task.GLOBAL_STYLE) for seed in range(30)]
    assert min(score.overall for score in inverted) > SETTINGS.min_score
    photographs = [clip(photograph(seed)) for seed in range(20, 26)]
    unrelated = [
        scorer.score_pair(one, other, Task.GLOBAL_STYLE).overall
        for place, one in enumerate(photographs)
        for other in photographs[place + 1 :]
    ]
    assert max(unrelated) < SETTINGS.min_score


def test_a_pale_sky_in_the_place_of_a_pale_wall_is_no_kept_foreground() -> None:
    source, elsewhere, subject = photograph(5), photograph(6), photograph(7)
    source[:90, :120], elsewhere[:90, :120] = (225, 225, 225), (250, 238, 215)
    mask = cv2.ellipse(np.zeros((240, 320), np.uint8), (180, 150), (50, 70), 0, 0, 360, 1, -1) > 0
    source[mask] = subject[mask]
    elsewhere[mask] = subject[mask]
    kept = kept_foreground(change_map(source, elsewhere, registered=False))
    assert not kept[20:60, 20:80].any()
    small = cv2.resize(mask.astype(np.uint8), kept.shape[::-1], interpolation=cv2.INTER_AREA) > 0
    assert iou(kept, small) > 0.85


def test_specks_far_off_are_no_part_of_an_outline_and_second_parts_are() -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:50, 20:50] = mask[60:75, 60:75] = mask[95:97, 2:4] = True
    kept = without_specks(mask)
    assert not kept[90:].any()
    assert np.array_equal(kept[:90], mask[:90])
