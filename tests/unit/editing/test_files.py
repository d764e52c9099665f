"""Files in and out: videos and stills of any shape, side by side, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from kiwi.editing.errors import EditError
from kiwi.editing.files import EditedFile, edit_files
from kiwi.editing.options import SamplingOptions
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.editing.request import FileRequest, reference_image
from kiwi.editing.streams import StreamEditor
from kiwi.errors import KiwiError
from kiwi.media import MediaError, decode, encode_video
from kiwi.media.streaming import survey

WORDS = "Make the red circle blue."


def video(path: Path, frames: int = 12, height: int = 48, width: int = 80, fps: float = 12.5) -> Path:
    clip = np.linspace(0, 255, frames * height * width * 3).astype(np.uint8).reshape(frames, height, width, 3)
    encode_video(path, clip, fps)
    return path


@pytest.fixture
def editor(pipeline: KiwiEditPipeline) -> StreamEditor:
    return StreamEditor.of(pipeline, SamplingOptions(steps=1))


def edited(editor: StreamEditor, *requests: FileRequest) -> list[EditedFile]:
    """What came of all; raises the first failure."""
    results: dict[int, EditedFile] = {}
    for number, outcome in edit_files(editor, requests):
        if isinstance(outcome, KiwiError):
            raise outcome
        results[number] = outcome
    return [results[number] for number in range(len(requests))]


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 48, 64), (12, 50, 90), (23, 200, 36)])
def test_a_result_has_the_size_rate_and_length_of_its_video(
    editor: StreamEditor, tmp_path: Path, frames: int, height: int, width: int
) -> None:
    path = video(tmp_path / "a.mp4", frames, height, width)
    (result,) = edited(editor, FileRequest(path, WORDS, tmp_path / "b.mp4"))
    before, after = survey(path), survey(tmp_path / "b.mp4")
    assert (after.height, after.width, after.frames, after.fps) == (height, width, frames, before.fps)
    assert (result.height, result.width, result.frames, result.audio) == (height, width, frames, "none")
    assert not np.array_equal(decode(path).frames, decode(tmp_path / "b.mp4").frames)


def test_a_comparison_shows_source_and_result_side_by_side(editor: StreamEditor, tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4")
    edited(editor, FileRequest(path, WORDS, tmp_path / "b.mp4", compare=tmp_path / "c.mp4"))
    source, result, both = (decode(tmp_path / name).frames.astype(int) for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert both.shape == (len(source), 48, 160, 3)
    assert np.abs(both[:, :, :80] - source).mean() < 6
    assert np.abs(both[:, :, 80:] - result).mean() < 6
    assert np.abs(result - source).mean() > 10


def test_a_still_image_gives_a_still_image_with_its_transparency(editor: StreamEditor, tmp_path: Path) -> None:
    alpha = np.zeros((40, 61), np.uint8)
    alpha[10:] = 180
    pixels = np.dstack([np.full((40, 61, 3), 90, np.uint8), alpha])
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    (result,) = edited(editor, FileRequest(tmp_path / "a.png", WORDS, tmp_path / "b.png", compare=tmp_path / "c.png"))
    image = PIL.Image.open(tmp_path / "b.png")
    assert (image.format, image.size, image.mode) == ("PNG", (61, 40), "RGBA")
    assert np.array_equal(np.asarray(image)[..., 3], alpha)
    assert PIL.Image.open(tmp_path / "c.png").size == (122, 40)
    assert result.frames == 1


def test_a_reference_of_any_shape_is_taken_and_changes_the_edit(editor: StreamEditor, tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4")
    PIL.Image.fromarray(np.full((300, 20, 3), 200, np.uint8)).save(tmp_path / "tall.png")
    PIL.Image.fromarray(np.full((1, 1), 9, np.uint8)).save(tmp_path / "dot.png")
    frames = []
    for name in ("tall.png", "dot.png"):
        edited(editor, FileRequest(path, WORDS, tmp_path / "b.mp4", reference=tmp_path / name))
        frames.append(decode(tmp_path / "b.mp4").frames)
    assert not np.array_equal(*frames)


def test_references_of_every_kind_are_read_as_eight_bits_of_rgb(tmp_path: Path) -> None:
    picture = PIL.Image.new("RGB", (30, 20), (200, 40, 90))
    kinds = {
        "cmyk.jpg": picture.convert("CMYK"),
        "palette.png": picture.convert("P"),
        "deep.png": PIL.Image.fromarray(np.full((20, 30), 200 * 257, np.uint16)),
        "bit.png": PIL.Image.new("1", (30, 20), 1),
        "clear.png": PIL.Image.new("RGBA", (30, 20), (0, 0, 0, 0)),
    }
    first_red = {"cmyk.jpg": 200, "palette.png": 200, "deep.png": 200, "bit.png": 255, "clear.png": 255}
    for name, image in kinds.items():
        image.save(tmp_path / name)
        seen = reference_image(tmp_path / name)
        assert (seen.shape, seen.dtype) == ((20, 30, 3), np.uint8), name
        assert abs(int(seen[10, 10, 0]) - first_red[name]) < 8, name
    frames = [PIL.Image.new("RGB", (30, 20), (value, 0, 0)) for value in (250, 0)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert reference_image(tmp_path / "moving.webp")[0, 0, 0] == 250  # the first picture of several


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 64), (3, 2, 2), (5, 48, 960), (5, 63, 77)])
def test_clips_of_one_frame_two_odd_and_extreme_sizes_come_back_as_they_are(
    editor: StreamEditor, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    path = video(tmp_path / "a.mp4", *shape)
    before = survey(path)
    (result,) = edited(editor, FileRequest(path, WORDS, tmp_path / "b.mp4"))
    after = survey(tmp_path / "b.mp4")
    assert (after.frames, after.height, after.width, after.fps) == (
        before.frames, before.height, before.width, before.fps,
    )  # fmt: skip
    assert max(result.model_size) <= 4 * min(result.model_size)


def test_several_files_edited_together_are_as_each_alone(editor: StreamEditor, tmp_path: Path) -> None:
    paths = [video(tmp_path / f"{index}.mp4", 12 + 5 * index, 48, 80) for index in range(3)]
    edited(editor, *[FileRequest(path, WORDS, tmp_path / f"out{path.name}", seed=1) for path in paths])
    for path in paths:
        together = decode(tmp_path / f"out{path.name}").frames.astype(int)
        edited(editor, FileRequest(path, WORDS, tmp_path / "alone.mp4", seed=1))
        assert np.abs(together - decode(tmp_path / "alone.mp4").frames).max() <= 8  # a level before lossy coding


def bad_requests(folder: Path) -> dict[str, FileRequest]:
    good = video(folder / "good.mp4")
    (folder / "text.mp4").write_text("no video at all")
    (folder / "folder.mp4").mkdir()
    PIL.Image.new("RGB", (20, 20)).save(folder / "still.png")
    out = folder / "out" / "b.mp4"
    return {
        "no file": FileRequest(folder / "gone.mp4", WORDS, out),
        "no readable video": FileRequest(folder / "text.mp4", WORDS, out),
        "instruction is empty": FileRequest(good, "  ", out),
        "has 10,000 characters": FileRequest(good, "a" * 10_000, out),
        "is no text": FileRequest(good, "a\udcffb", out),
        "seed .* is out of range": FileRequest(good, WORDS, out, seed=2**64),
        "is no image": FileRequest(good, WORDS, out, reference=good),
        "is the input itself": FileRequest(good, WORDS, good),
        "is a folder": FileRequest(good, WORDS, folder / "folder.mp4"),
        "does not end in .mp4": FileRequest(good, WORDS, folder / "out" / "b.avi"),
        "b.mp4 is not a still image": FileRequest(folder / "still.png", WORDS, out),
        "cannot be written": FileRequest(good, WORDS, folder / "text.mp4" / "b.mp4"),
        "both result and comparison": FileRequest(good, WORDS, out, compare=out),
    }


@pytest.mark.parametrize("said", [
    "no file", "no readable video", "instruction is empty", "has 10,000 characters", "is no text",
    "seed .* is out of range", "is no image", "is the input itself", "is a folder",
    "does not end in .mp4", "b.mp4 is not a still image", "cannot be written", "both result and comparison",
])  # fmt: skip
def test_a_bad_request_is_refused_and_nothing_is_written(editor: StreamEditor, tmp_path: Path, said: str) -> None:
    request = bad_requests(tmp_path)[said]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises((EditError, MediaError), match=said) as error:
        edited(editor, request)
    assert error.value.remedy
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_that_fails_midway_leaves_nothing_and_stops_no_other(
    editor: StreamEditor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = video(tmp_path / "good.mp4", 40), video(tmp_path / "bad.mp4", 40)
    import kiwi.editing.files as files

    whole = files.read_frames

    def breaking(reel, *rest):  # type: ignore[no-untyped-def]
        """A fake of damage in the middle of a file, which encoders here do not make."""
        for index, frame in enumerate(whole(reel, *rest)):
            if reel.path == bad and index == 25:
                raise MediaError("unreadable", f"{bad}: frame 25 is damaged", "fetch the file again")
            yield frame

    monkeypatch.setattr(files, "read_frames", breaking)
    requests = [FileRequest(path, WORDS, tmp_path / "out" / path.name) for path in (bad, good)]
    outcomes = dict(edit_files(editor, requests))
    assert isinstance(outcomes[0], MediaError)
    assert isinstance(outcomes[1], EditedFile)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.mp4"]
    assert survey(tmp_path / "out" / "good.mp4").frames == 40


def test_work_that_is_given_up_leaves_nothing(editor: StreamEditor, tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", 60)
    (tmp_path / "b.mp4").write_bytes(b"before")

    def stop(done: int, total: int) -> None:
        if done > 3:
            raise KeyboardInterrupt

    editor.options = SamplingOptions(steps=1, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        list(edit_files(editor, [FileRequest(path, WORDS, tmp_path / "b.mp4")], stop))
    assert {each.name for each in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}
    assert (tmp_path / "b.mp4").read_bytes() == b"before"
