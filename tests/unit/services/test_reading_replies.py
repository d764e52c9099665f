"""Properties of reading: any words give a value within its bounds, or the one typed error."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiwi.curation.curators.vlm_ground import Regions
from kiwi.curation.curators.vlm_score import Marks
from kiwi.curation.curators.vlm_verify import Verdict
from kiwi.errors import UsageError
from kiwi.services.pictures import SMALLEST_SIDE, Layout, layout
from kiwi.services.prompts import filled, read_prompts
from kiwi.services.replies import UnusableReplyError, parse_reply
from kiwi.services.wire import Completion

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([0, 25, 25.0, 26, -0.0])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
keys = st.sampled_from(["reasoning", "score", "objects", "bbox_2d", "label", "identity", "appearance", "degenerate"])
near = st.dictionaries(keys, values | st.lists(st.integers(-5, 1100), min_size=1, max_size=5), max_size=6)
regions = st.lists(
    st.dictionaries(keys, st.lists(st.integers(-5, 1100), min_size=3, max_size=5), max_size=3), max_size=3
)
json_texts = (near | regions.map(lambda found: {"objects": found}) | regions | values).map(json.dumps)
fenced = json_texts.map(lambda text: f"Well:\n```json\n{text}\n```")
cut = json_texts.flatmap(lambda text: st.integers(0, len(text)).map(lambda end: text[:end]))


@settings(max_examples=300, deadline=None)
@given(st.text() | json_texts | fenced | cut)
def test_any_reply_gives_marks_in_range_or_a_typed_failure(text: str) -> None:
    for schema in (Marks, Regions, Verdict):
        try:
            value = parse_reply(text, schema)
        except UnusableReplyError as error:
            str(error).encode()  # fit for a column
            continue
        if isinstance(value, Marks):
            assert len(value.score) == 2
            assert all(0 <= mark <= 25 for mark in value.score)
        elif isinstance(value, Regions):
            assert all(0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000 for x1, y1, x2, y2 in map(corners, value.objects))
        else:
            assert 0 <= value.consistency <= 1


def corners(region: object) -> list[float]:
    return list(region.bbox_2d)  # type: ignore[attr-defined]


@given(st.lists(st.integers(0, 25), min_size=2, max_size=2), st.text(max_size=3000))
def test_a_good_reply_is_always_read_however_long_its_reason(marks: list[int], reason: str) -> None:
    said = json.dumps({"reasoning": reason, "score": marks})
    assert parse_reply(said, Marks).score == marks


@pytest.mark.parametrize(
    "score", [[1], [1, 2, 3], [26, 1], [-1, 1], ["1", 2], [True, 2], [None, 2], 12, "12", [[1], 2]]
)
def test_marks_of_another_scale_count_or_type_are_no_marks(score: object) -> None:
    with pytest.raises(UnusableReplyError):
        parse_reply(json.dumps({"reasoning": "", "score": score}), Marks)


@pytest.mark.parametrize(
    "box", [[0, 0, 1001, 5], [5, 0, 5, 9], [9, 0, 5, 9], [0, 0, 9], [-1, 0, 5, 5], [0.5, "1", 5, 5]]
)
def test_a_box_out_of_scale_or_without_area_is_no_box(box: list[object]) -> None:
    with pytest.raises(UnusableReplyError):
        parse_reply(json.dumps([{"bbox_2d": box, "label": "cat"}]), Regions)


def test_boxes_are_read_as_a_bare_list_and_in_an_object() -> None:
    said = [{"bbox_2d": [1, 2, 30, 40], "label": "cat", "confidence": 0.9}]
    for value in (said, {"objects": said}):
        assert parse_reply(json.dumps(value), Regions).objects[0].bbox_2d == [1, 2, 30, 40]
    assert parse_reply("[]", Regions).objects == []


@given(values)
def test_any_words_in_a_cache_are_a_completion_or_a_miss(value: object) -> None:
    loaded = Completion.load(json.dumps(value))
    assert loaded is None or isinstance(loaded, Completion)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([1024, 360_000]), st.sampled_from([None, 3.0]))
def test_a_place_on_the_canvas_comes_back_to_its_place_in_the_frame(
    height: int, width: int, pixels: int, aspect: float | None
) -> None:
    shown = layout(height, width, pixels, max_aspect=aspect)
    rows, columns = shown.content
    assert shown.share_of_frame(columns / 2, rows / 4) == pytest.approx((0.5, 0.25))
    assert shown.share_of_frame(columns + 1, rows + 1) == (1.0, 1.0)
    assert all(full >= part for full, part in zip(shown.canvas, shown.content, strict=True))
    assert min(shown.canvas) >= SMALLEST_SIDE
    if aspect is not None:
        assert max(shown.canvas) / min(shown.canvas) <= aspect * 1.02
        assert shown.canvas[0] * shown.canvas[1] <= max(pixels * 1.1, 4 * SMALLEST_SIDE**2)


def test_a_frame_of_an_extreme_format_is_padded_below_or_beside_it() -> None:
    shown = layout(100, 1000, 360_000, max_aspect=3.0)
    picture = shown.draw(np.full((100, 1000, 3), 255, np.uint8))
    assert picture.shape == (333, 1000, 3)
    assert picture[:100].min() == 255
    assert picture[100:].max() == 127


@pytest.mark.parametrize(("content", "interpolation"), [((90, 120), cv2.INTER_LINEAR), ((40, 50), cv2.INTER_AREA)])
def test_a_frame_is_shrunk_by_interpolation_only_where_every_pixel_is_still_looked_at(
    content: tuple[int, int], interpolation: int
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    wanted = cv2.resize(frame, content[::-1], interpolation=interpolation)
    assert np.array_equal(Layout(content, content).draw(frame), wanted)


def test_words_put_into_a_prompt_are_not_looked_at_again() -> None:
    assert filled("<a> and <b>", {"a": "<b>", "b": "<a> \\1"}) == "<b> and <a> \\1"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\x00"])
def test_prompts_of_ones_own_that_cannot_be_used_are_told_by_name(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "one.txt").write_bytes(content)
    with pytest.raises(UsageError, match=r"one\.txt"):
        read_prompts(str(tmp_path), tmp_path, ("one",))
