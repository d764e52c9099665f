"""What changed between two versions: every row is accounted for, whatever happened to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiwi.cli import data
from kiwi.configuration import RunConfiguration, StageSettings
from kiwi.dataset.rows import conform, write_rows
from kiwi.errors import UsageError
from kiwi.lineage import LineageError, describe, diff_versions, list_versions, print_differences, publish_dataset, pull
from kiwi.lineage.differences import compare_rows
from kiwi.tracking import silent
from kiwi.workspace import Workspace


def _row(position: int, iid: str, score: float | None = 8.0, reason: str = "", prompt: str = "x") -> dict[str, Any]:
    status = "rejected" if reason else "kept"
    trains_as = "nothing" if reason else "quadruplet"
    return {
        **{"position": position, "iid": iid, "pair_id": f"pair{position}", "prompt": prompt, "score_overall": score},
        **{"status": status, "reason": reason, "trains_as": trains_as, "ref_image_bytes": iid.encode()},
    }


BEFORE = [
    _row(0, "same"),
    _row(1, "rejudged", 7.0),
    _row(2, "gone"),
    _row(3, "other clips"),
    _row(4, "twice"),
    _row(5, "twice", reason="duplicate_sample"),
    _row(6, "unmeasured", None),
]
AFTER = [
    _row(0, "same"),
    _row(1, "rejudged", 2.0, "score_below_threshold"),
    _row(3, "other prompt", prompt="y"),
    _row(4, "twice"),
    _row(5, "twice", reason="duplicate_sample"),
    _row(6, "unmeasured", None),
    _row(7, "twice", reason="duplicate_sample"),
    _row(8, "new", reason="no_region"),
]


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return conform(pl.DataFrame(rows)).drop("ref_image_bytes") if rows else _table([_row(0, "x")]).clear()


def _publish(configuration: RunConfiguration, folder: Path, rows: list[dict[str, Any]], parts: int = 1) -> None:
    for old in folder.glob("rows/*"):
        old.unlink()
    for part in range(parts):
        write_rows(conform(pl.DataFrame(rows[part::parts])), folder / "rows" / f"part-{part:05d}.parquet")
    (folder / "media").mkdir(exist_ok=True)
    (folder / "media" / "media-00000.tar").write_bytes(b"clip" * len(rows))
    publish_dataset(configuration, folder, silent())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions: BEFORE, AFTER, and one whose rows are none of ours. Its remote has lost the media."""
    root = tmp_path_factory.mktemp("versions")
    stage = StageSettings(name="s", steps=1, mix={"image": 1.0}, learning_rate=1e-3, mllm_learning_rate=1e-3)
    configuration = RunConfiguration(
        preset="tiny", workspace=str(root / "demo"), tracking_uri=f"sqlite:///{root}/t.db", stages=(stage,)
    )
    _publish(configuration, root / "dataset", BEFORE)
    _publish(configuration, root / "dataset", AFTER, parts=2)
    (root / "dataset" / "rows" / "part-00000.parquet").write_bytes(b"nothing")
    publish_dataset(configuration, root / "dataset", silent())
    for path in [*(root / "demo" / "dvc-remote").rglob("*"), *(root / "demo" / "data" / ".dvc" / "cache").rglob("*")]:
        if path.is_file() and path.read_bytes().startswith(b"clip"):
            path.unlink()
    return Workspace.of(configuration).repository


@pytest.fixture(scope="module")
def found(repository: Path) -> dict[str, Any]:
    return diff_versions(repository, "v1", "v2")


def test_rows_are_followed_by_what_they_are_and_then_by_where_they_stand(found: dict[str, Any]) -> None:
    assert (found["from"]["version"], found["from"]["rows"]) == ("refvie/v1", 7)
    assert (found["to"]["version"], found["to"]["rows"]) == ("refvie/v2", 8)
    assert found["rows"] == {"added": 2, "removed": 1, "replaced": 1, "changed": 1, "same": 4}
    assert [row["iid"] for row in found["shown"]["added"]] == ["twice", "new"]
    assert [row["iid"] for row in found["shown"]["removed"]] == ["gone"]
    (replaced,) = found["shown"]["replaced"]
    assert replaced["differs"] == {"iid": ("other clips", "other prompt"), "prompt": ("x", "y")}


def test_changed_verdicts_and_scores_are_counted_and_shown(found: dict[str, Any]) -> None:
    assert found["transitions"] == [{"from": "kept", "to": "rejected: score_below_threshold", "rows": 1}]
    assert found["added"] == [
        {"verdict": "rejected: duplicate_sample", "rows": 1},
        {"verdict": "rejected: no_region", "rows": 1},
    ]
    assert found["removed"] == [{"verdict": "kept", "rows": 1}]
    assert found["columns"] == {"prompt": 1, "score_overall": 1, "status": 1, "reason": 1, "trains_as": 1}
    (changed,) = found["shown"]["changed"]
    assert changed["iid"] == "rejudged"
    assert changed["differs"]["score_overall"] == (7.0, 2.0)


def test_a_comparison_read_backwards_swaps_what_came_and_what_went(found: dict[str, Any]) -> None:
    back = compare_rows(_table(AFTER), _table(BEFORE), limit=1)
    assert back["rows"] == {**found["rows"], "added": 1, "removed": 2}
    assert len(back["shown"]["removed"]) == 1


def test_columns_that_only_one_version_has_are_named_and_change_no_row() -> None:
    back = compare_rows(_table(BEFORE), _table(BEFORE).with_columns(score_new=pl.lit(1.0)))
    assert back["only_in_one"] == ["score_new"]
    assert back["rows"]["same"] == len(BEFORE)


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([1.0, 2.0, None])), max_size=8)


@given(before=ROWS, after=ROWS)
def test_every_row_of_both_versions_is_counted_once(before: list[Any], after: list[Any]) -> None:
    tables = [_table([_row(n, *row) for n, row in enumerate(rows)]) for rows in (before, after)]
    rows = compare_rows(*tables)["rows"]
    in_both = rows["same"] + rows["changed"] + rows["replaced"]
    assert in_both + rows["removed"] == len(before)
    assert in_both + rows["added"] == len(after)
    assert compare_rows(tables[0], tables[0])["rows"] == {**dict.fromkeys(rows, 0), "same": len(before)}


def test_people_read_the_counts_the_reasons_and_the_rows(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_differences({**found, "shown": {**found["shown"], "added": []}})
    said = capsys.readouterr().out
    assert "refvie/v1 (7 rows) -> refvie/v2 (8 rows)" in said
    assert "2 added, 1 removed, 1 replaced, 1 changed, 4 same" in said
    assert "~ 1  kept -> rejected: score_below_threshold" in said
    assert "scores changed: score_overall in 1" in said
    assert "and 2 more added" in said


def test_programs_read_the_same_as_json(
    repository: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiwi.lineage.diff_versions", lambda *asked: {**found, "asked": [str(one) for one in asked]})
    data.diff("v1", "v2", repository, limit=7, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["asked"] == [str(repository), "v1", "v2", "7"]
    assert said["rows"] == found["rows"]
    assert said["shown"]["changed"][0]["differs"]["score_overall"] == [7.0, 2.0]


def test_rows_are_had_without_the_media(repository: Path, tmp_path: Path) -> None:
    said = pull(repository, "v1", tmp_path / "out", rows_only=True)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/**/*") if path.is_file()] == [
        "rows/part-00000.parquet"
    ]
    assert said["files"] == 1
    assert said["digest"] == list_versions(repository)[0]["digest"]
    with pytest.raises(
        LineageError, match="dvc pull: the remote lacks data"
    ):  # the media are really not there to be had
        pull(repository, "v1", tmp_path / "whole")


def test_versions_without_our_rows_are_refused_and_nothing_is_left(repository: Path) -> None:
    before = describe(repository / ".dvc" / "tmp")
    with pytest.raises(LineageError, match="refvie/v3 has no readable rows"):
        diff_versions(repository, "v1", "v3")
    with pytest.raises(UsageError, match="v8"):
        diff_versions(repository, "v8", "v1")
    assert describe(repository / ".dvc" / "tmp") == before
