"""Stages: what is rejected and why, resuming after a kill to the same bytes, and shards that change nothing."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from kiwi.configuration import CurationSettings, RunConfiguration, SourceSettings
from kiwi.curation import stages
from kiwi.curation.deduplicate import deduplicate
from kiwi.curation.errors import CurationError
from kiwi.curation.funnel import add_books
from kiwi.curation.plan import plan_shards, read_plan
from kiwi.curation.stages import SHARD_STAGES, run_stage
from kiwi.curation.unique_crops import unique_crops
from kiwi.dataset.schema import CURATION_STAGES
from kiwi.media import encode_video, png_bytes
from kiwi.sources.procedural import draw
from kiwi.tracking import silent


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def configured(workspace: Path, source: SourceSettings | None = None, **curation: Any) -> RunConfiguration:
    return RunConfiguration(
        preset="tiny",
        workspace=str(workspace),
        tracking_uri="",
        stages=(),
        source=source or SourceSettings(clips=14, images=2),
        curation=CurationSettings(**{"shards": 2, "chunk_rows": 3, **curation}),
    )


def curate(configuration: RunConfiguration) -> list[dict[str, Any]]:
    """Runs everything; returns the books of every stage and shard."""
    books = []
    shards = plan_shards(configuration, silent())
    for stage in CURATION_STAGES[:-1]:
        if stage == "unique_crops":
            books.append(unique_crops(configuration, silent()))
        else:
            books.extend(run_stage(configuration, stage, shard, silent()) for shard in shards)
    return [*books, deduplicate(configuration, silent())]


def final_rows(configuration: RunConfiguration) -> list[dict[str, Any]]:
    parts = sorted(Path(read_plan(configuration).deduplicated).glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file but the books, which hold times."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("books"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunConfiguration:
    """An uninterrupted build."""
    configuration = configured(tmp_path_factory.mktemp("whole"))
    curate(configuration)
    return configuration


def test_stages_killed_between_chunks_resume_to_the_same_bytes(
    whole: RunConfiguration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = configured(tmp_path)
    assert plan_shards(configuration, silent()) == [0, 1]
    plan, original = read_plan(configuration), stages.write_part

    def write_then_die(*arguments: Any) -> None:
        original(*arguments)
        raise Killed

    for stage, following in zip(SHARD_STAGES, [*SHARD_STAGES[1:], None], strict=True):
        monkeypatch.setattr(stages, "write_part", write_then_die)
        with pytest.raises(Killed):
            run_stage(configuration, stage, 0, silent())
        monkeypatch.setattr(stages, "write_part", original)
        assert not Path(plan.books(stage, 0)).exists()
        assert len(list(Path(plan.stage_folder(stage, 0)).glob("part-*"))) == 1
        if following is not None:
            with pytest.raises(CurationError, match="is not finished"):
                run_stage(configuration, following, 0, silent())
        for shard in (0, 1):
            run_stage(configuration, stage, shard, silent())
    deduplicate(configuration, silent())
    assert contents(Path(plan.root)) == contents(Path(read_plan(whole).root))


@pytest.mark.parametrize(("shards", "chunk_rows"), [(1, 100), (3, 2)])
def test_the_number_of_shards_changes_no_row(
    shards: int, chunk_rows: int, whole: RunConfiguration, tmp_path: Path
) -> None:
    configuration = configured(tmp_path, shards=shards, chunk_rows=chunk_rows)
    curate(configuration)
    places = ("src_video", "tgt_video")
    rows, expected = final_rows(configuration), final_rows(whole)
    for row in [*rows, *expected]:
        for place in places:
            row[place] = row[place].partition("::")[2]
    assert rows == expected


def test_books_of_all_stages_reconcile_with_the_rows(whole: RunConfiguration) -> None:
    books = [run_stage(whole, stage, shard, silent()) for stage in SHARD_STAGES for shard in (0, 1)]
    books.append(unique_crops(whole, silent()))
    final = deduplicate(whole, silent())
    assert add_books([*books, final]) == final["funnel"]
    assert final["rows"] == 16
    assert final["trains_as"]["quadruplet"] == final["kept"] > 3


def test_a_finished_stage_is_not_run_again(whole: RunConfiguration, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("worked again")

    monkeypatch.setattr(stages, "write_part", never)
    assert run_stage(whole, "score", 0, silent())["rows_in"] == 8


def test_procedural_rows_leave_for_the_reasons_that_their_kinds_give(whole: RunConfiguration) -> None:
    for row in final_rows(whole):
        if row["media"] == "image":
            assert (row["reason"], row["trains_as"]) == ("image_pair", "instruction")
        elif row["edit_type"] in ("remove", "style"):
            assert (row["reason"], row["detail"]) == ("task_not_eligible", row["task"])
            assert row["trains_as"] == "instruction"
        elif row["status"] == "kept":
            given = row["edit_type"].endswith("_reference")
            assert (row["ref_origin"] == "given") == given
            assert row["ref_image_bytes"].startswith(b"\x89PNG")
        assert row["score_name"] == "heuristic_score"


@pytest.fixture
def pairs_folder(tmp_path: Path) -> Path:
    """Good and bad pairs of a user's own."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    source = SourceSettings(clips=8, images=0)
    add, style = draw(source, 0, "add", 9), draw(source, 1, "style", 9)
    encode_video(folder / "a_source.mp4", add.source, 8)
    encode_video(folder / "a_target.mp4", add.target, 8)
    encode_video(folder / "short.mp4", add.target[:5], 8)
    encode_video(folder / "large.mp4", np.repeat(np.repeat(add.target, 2, 1), 2, 2), 8)
    encode_video(folder / "style_source.mp4", style.source, 8)
    encode_video(folder / "style_target.mp4", 255 - style.source, 8)
    (folder / "broken.mp4").write_bytes(b"no video at all" * 100)
    (folder / "image.png").write_bytes(png_bytes(add.source[0]))
    (folder / "edited.png").write_bytes(png_bytes(add.target[0]))
    rows = [
        ("a_source.mp4", "a_target.mp4", "Add it", "local_add"),
        ("a_source.mp4", "a_target.mp4", "Add it", "local_add"),
        ("a_source.mp4", "missing.mp4", "Add it", "local_add"),
        ("broken.mp4", "a_target.mp4", "Add it", "local_add"),
        ("a_source.mp4", "short.mp4", "Add it", "local_add"),
        ("a_source.mp4", "large.mp4", "Add it", "local_add"),
        ("a_source.mp4", "a_source.mp4", "Add it", "local_add"),
        ("style_source.mp4", "style_target.mp4", "Make it inverted", "global_style"),
        ("style_source.mp4", "style_target.mp4", "Change it", ""),
        ("image.png", "edited.png", "Add it", "local_add"),
        ("a_source.mp4", "a_target.mp4", "", "local_add"),
        ("a_source.mp4", "a_target.mp4", "x" * 5000, "local_add"),
        ("../outside.mp4", "a_target.mp4", "Add it", "local_add"),
    ]
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("src_video", "tgt_video", "prompt", "edit_type"), *rows])
    return folder


def test_each_bad_pair_is_quarantined_with_its_reason_and_the_books_balance(pairs_folder: Path, tmp_path: Path) -> None:
    configuration = configured(tmp_path, SourceSettings(kind="pairs", pairs=str(pairs_folder)))
    books = curate(configuration)
    rows = final_rows(configuration)
    assert [(row["status"], row["reason"], row["trains_as"]) for row in rows] == [
        ("kept", "", "quadruplet"),
        ("rejected", "duplicate_sample", "nothing"),
        ("failed", "target_missing", "nothing"),
        ("failed", "source_unreadable", "nothing"),
        ("rejected", "length_mismatch", "nothing"),
        ("rejected", "size_mismatch", "nothing"),
        ("rejected", "no_visible_edit", "nothing"),
        ("rejected", "task_not_eligible", "instruction"),
        ("rejected", "global_change", "instruction"),
        ("rejected", "image_pair", "instruction"),
        ("failed", "instruction_empty", "nothing"),
        ("failed", "instruction_too_long", "nothing"),
        ("failed", "path_escapes", "nothing"),
    ]
    assert rows[1]["dup_of"] == rows[0]["iid"]
    assert add_books(books) == books[-1]["funnel"]


def test_what_a_curator_trips_over_is_that_rows_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kiwi.curation.curators.classical_ground import ClassicalGrounder

    def trip(self: Any, source: Any, target: Any, task: Any) -> Any:
        raise ValueError("tripped")

    monkeypatch.setattr(ClassicalGrounder, "ground_pair", trip)
    configuration = configured(tmp_path, SourceSettings(clips=6, images=0))
    books = curate(configuration)
    failed = [row for row in final_rows(configuration) if row["status"] == "failed"]
    assert failed
    assert all(row["reason"] == "curator_error" and "tripped" in row["detail"] for row in failed)
    assert add_books(books) == books[-1]["funnel"]


def test_a_stage_without_a_plan_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="nothing was planned"):
        run_stage(configured(tmp_path), "ingest", 0, silent())
