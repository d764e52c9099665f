"""A CSV of requests: a result or a typed failure for every row, and nothing done twice."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from kiwi.editing.batch import BatchSummary, RowResult, edit_batch, read_results, read_rows
from kiwi.editing.options import SamplingOptions
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.editing.streams import StreamEditor
from kiwi.errors import UsageError
from kiwi.hashing import contents_digest
from kiwi.media import encode_video
from kiwi.media.streaming import survey

OPTIONS = SamplingOptions(steps=1, batch_size=4)
HEADER = "video,prompt,reference,seed,out\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(3):
        clip = np.full((10 + index, 48, 64, 3), 60 * index, np.uint8)
        encode_video(tmp_path / f"{index}.mp4", clip, 10.0)
    (tmp_path / "text.mp4").write_text("no video")
    PIL.Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "still.png")
    return tmp_path


class Loaded:
    """Hands the editor out and counts how often, and how many windows it edited."""

    def __init__(self, pipeline: KiwiEditPipeline) -> None:
        self.pipeline, self.times, self.batches = pipeline, 0, list[int]()
        whole = pipeline._denoise

        def counted(batch, sampling):  # type: ignore[no-untyped-def]
            self.batches.append(len(batch))
            return whole(batch, sampling)

        pipeline._denoise = counted  # type: ignore[method-assign]

    def __call__(self) -> StreamEditor:
        self.times += 1
        return StreamEditor.of(self.pipeline, OPTIONS)


@pytest.fixture
def loaded(pipeline: KiwiEditPipeline) -> Loaded:
    return Loaded(pipeline)


def run(folder: Path, text: str, loaded: Callable[[], StreamEditor], **changes: str) -> BatchSummary:
    (folder / "requests.csv").write_text(text)
    key = changes.get("model_key", "model")
    return edit_batch(loaded, read_rows(folder / "requests.csv"), folder, folder / "out", OPTIONS, key)


def results(folder: Path) -> dict[int, RowResult]:
    return {result.row: result for result in read_results(folder / "out" / "results.csv")}


def test_every_row_has_a_result_or_a_typed_failure(folder: Path, loaded: Loaded) -> None:
    rows = [
        "0.mp4,make it blue,,,", "gone.mp4,make it blue,,,", "text.mp4,make it blue,,,", "1.mp4,,,,",
        "1.mp4,use it,still.png,7,named.mp4", "1.mp4,use it,text.mp4,,", "still.png,make it blue,,,", ",x,,,",
        "0.mp4,x,,seven,", "0.mp4,x,,,../out.mp4", "0.mp4,x,,,named.mp4", "0.mp4,x,,,results.csv",
    ]  # fmt: skip
    summary = run(folder, HEADER + "\n".join(rows) + "\n", loaded)
    assert summary == BatchSummary(rows=12, done=3, failed=9, skipped=0)
    said = {row: (result.status, result.reason) for row, result in results(folder).items()}
    assert said == {
        1: ("done", ""), 2: ("failed", "bad_request"), 3: ("failed", "unreadable"), 4: ("failed", "bad_request"),
        5: ("done", ""), 6: ("failed", "no_image"), 7: ("done", ""), 8: ("failed", "bad_request"),
        9: ("failed", "bad_request"), 10: ("failed", "bad_output"), 11: ("failed", "bad_output"),
        12: ("failed", "bad_output"),
    }  # fmt: skip
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"0001-0.mp4", "named.mp4", "0007-still.png", "results.csv"}
    assert survey(folder / "out" / "named.mp4").frames == 11


def test_failed_rows_keep_the_seed_as_asked_and_messages_the_paths_as_given(
    folder: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run(Path(), HEADER + "gone.mp4,x,,7,\ngone.mp4,x,,,\n0.mp4,x,,,a.avi\n0.mp4,x,,,\n", loaded)
    said = results(Path())
    assert [said[row].seed for row in (1, 2, 3, 4)] == ["7", "", "", "0"]
    assert [said[row].message for row in (1, 3)] == ["no file gone.mp4", "out/a.avi does not end in .mp4"]


def test_finished_rows_are_skipped_and_changed_ones_are_not(folder: Path, loaded: Loaded) -> None:
    text = HEADER + "0.mp4,make it blue,,,\n1.mp4,make it blue,still.png,,\n2.mp4,make it blue,,,\n"
    run(folder, text, loaded)
    first = results(folder)
    loaded.times = 0
    assert run(folder, text, loaded) == BatchSummary(rows=3, done=3, failed=0, skipped=3)
    assert loaded.times == 0
    assert results(folder) == first

    PIL.Image.new("RGB", (30, 20), (10, 200, 10)).save(folder / "still.png")
    assert run(folder, text, loaded).skipped == 2
    assert run(folder, text.replace("2.mp4,make it blue,,,", "2.mp4,make it blue,,5,"), loaded).skipped == 2
    (folder / "out" / "0001-0.mp4").unlink()
    assert run(folder, text.replace("2.mp4,make it blue,,,", "2.mp4,make it blue,,5,"), loaded).skipped == 2
    assert run(folder, text, loaded, model_key="another").skipped == 0


def test_a_killed_batch_resumes_where_it_stopped(folder: Path, loaded: Loaded) -> None:
    text = HEADER + "".join(f"{index}.mp4,make it blue,,,\n" for index in range(3))
    edit = loaded.pipeline._denoise
    calls = 0

    def dying(batch, sampling):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return edit(batch, sampling)

    loaded.pipeline._denoise = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(folder, text, loaded)
    done = [result.row for result in results(folder).values() if result.status == "done"]
    assert len(done) == 1
    loaded.pipeline._denoise = edit  # type: ignore[method-assign]
    assert run(folder, text, loaded) == BatchSummary(rows=3, done=3, failed=0, skipped=1)
    assert not [path for path in (folder / "out").iterdir() if path.name.startswith(".")]


def test_rows_of_one_size_are_edited_together(folder: Path, loaded: Loaded) -> None:
    for index in range(4):
        encode_video(folder / f"same{index}.mp4", np.full((9, 48, 64, 3), 30 * index, np.uint8), 10.0)
    run(folder, HEADER + "".join(f"same{index}.mp4,make it blue,,,\n" for index in range(4)), loaded)
    assert loaded.batches == [4]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("video\na.mp4\n", "no column prompt"),
        ("", "no column video, prompt"),
        (HEADER, "has no rows"),
        ("\x00\x01\xff", "readable CSV|no column"),
    ],
)
def test_a_csv_that_is_no_list_of_requests_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "requests.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=said):
        read_rows(tmp_path / "requests.csv")


def test_a_results_file_of_something_else_is_not_overwritten(folder: Path, loaded: Loaded) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "results.csv").write_text("my,own\n1,2\n")
    with pytest.raises(UsageError, match="was not written by a batch"):
        run(folder, HEADER + "0.mp4,make it blue,,,\n", loaded)
    assert (folder / "out" / "results.csv").read_text() == "my,own\n1,2\n"


def test_results_are_a_csv_that_others_read(folder: Path, loaded: Loaded) -> None:
    run(folder, HEADER + '0.mp4,"make it blue, and ""big""",,,\n', loaded)
    with (folder / "out" / "results.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["prompt"] == 'make it blue, and "big"'
    assert (line["status"], line["frames"], line["width"], line["height"], line["fps"]) == (
        "done",
        "10",
        "64",
        "48",
        "10.0",
    )


def test_a_model_folder_is_known_by_its_contents(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part" / "weights").write_bytes(b"12")
    assert contents_digest(tmp_path / "a") == contents_digest(tmp_path / "b")
    (tmp_path / "b" / "part" / "weights").write_bytes(b"13")
    assert contents_digest(tmp_path / "a") != contents_digest(tmp_path / "b")
