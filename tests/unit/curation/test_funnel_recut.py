"""A re-cut says what a build at other thresholds would, or that nobody has measured it; it never guesses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiwi.configuration import CurationSettings, RunConfiguration, SourceSettings
from kiwi.curation import deduplicate
from kiwi.curation.build import build_dataset
from kiwi.curation.funnel import reconcile
from kiwi.curation.plan import plan_shards
from kiwi.curation.recut import Recut, cut_of, recut, said
from kiwi.curation.stages import run_stage
from kiwi.curation.stored import Stored, books_of_workdir, stored_dataset, stored_workdir
from kiwi.curation.thresholds import INSTRUCTION, THRESHOLDS, run_values, settings_for
from kiwi.dataset.rows import conform
from kiwi.dataset.schema import CURATION_STAGES, FAILURES, Reason, TrainsAs
from kiwi.dataset.statistics import funnel_of
from kiwi.errors import UsageError
from kiwi.tracking import silent

OWN = {
    "min_score": 6.0, "min_reference_score": 6.0, "min_first_frame_score": 2.0, "min_region": 0.1, "max_region": 0.8,
    "min_verify": 0.5,
}  # fmt: skip
TENTHS = st.integers(0, 10).map(lambda value: value / 10)
HIDDEN = st.fixed_dictionaries(
    {
        "first_frame": TENTHS.map(lambda value: 10 * value),
        "overall": TENTHS.map(lambda value: 10 * value),
        "sharpness": TENTHS,
        "area": TENTHS,
        "consistency": TENTHS,
        "needs_reference": st.booleans(),
        "frames": st.sampled_from([1, 9, 9, 9]),
        "fault": st.sampled_from(
            ["", "", "", "source_missing", "size_mismatch", "no_visible_edit", "task_not_eligible", "mask_degenerate"]
        ),
    }
)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "score.overall": TENTHS.map(lambda value: 10 * value),
        "score.first_frame": TENTHS.map(lambda value: 10 * value),
        "ground.smallest": TENTHS,
        "ground.largest": TENTHS,
        "verify.consistency": TENTHS,
    },
)


def build(hidden: list[dict[str, Any]], curation: dict[str, float]) -> pl.DataFrame:
    """A stand-in for curation: decides in the order of the real stages on measurements that are drawn beforehand.

    What a stage does not reach it leaves unmeasured, as the real ones do. Repetitions are not its subject.
    """
    rows = pl.DataFrame([_decided(place, row, curation) for place, row in enumerate(hidden)], SCHEMA)
    repeated = rows.with_columns(pl.lit(False).alias("repeated"))
    return conform(repeated.with_columns(deduplicate.trains_as(curation["min_score"])))


SCHEMA = {
    "position": pl.Int64, "iid": pl.String, "status": pl.String, "stage": pl.String, "reason": pl.String,
    "needs_reference": pl.Boolean, "frames": pl.Int64, "score_overall": pl.Float64, "score_first_frame": pl.Float64,
    "score_sharpness": pl.Float64, "region_area": pl.Float64, "verify_consistency": pl.Float64,
    "trains_as": pl.String, "task": pl.String, "dup_of": pl.String,
}  # fmt: skip


def _decided(place: int, hidden: dict[str, Any], curation: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"position": place, "iid": f"i{place}", "needs_reference": hidden["needs_reference"]}
    row |= {"task": "local_add" if place % 2 else "global_style", "score_overall": None, "dup_of": ""}
    stage, reason = _outcome(row, hidden, curation)
    status = "kept" if not reason else "failed" if reason in FAILURES else "rejected"
    return row | {"status": status, "stage": stage, "reason": reason}


def _outcome(row: dict[str, Any], hidden: dict[str, Any], curation: dict[str, float]) -> tuple[str, str]:
    fault = hidden["fault"]
    if fault == "source_missing":
        return "ingest", fault
    if fault == "size_mismatch":
        return "score", fault
    row["frames"], row["score_first_frame"] = hidden["frames"], hidden["first_frame"]
    if hidden["first_frame"] < curation["min_first_frame_score"]:
        return "score", "first_frame_below_threshold"
    row["score_overall"], row["score_sharpness"] = hidden["overall"], hidden["sharpness"]
    if fault == "no_visible_edit":
        return "score", fault
    if hidden["frames"] == 1:
        return "score", "image_pair"
    if hidden["overall"] < max(curation["min_score"], curation["min_reference_score"]):
        return "score", "score_below_threshold"
    if fault == "task_not_eligible":
        return "ground", fault
    row["region_area"] = hidden["area"]
    if hidden["area"] < curation["min_region"]:
        return "ground", "region_too_small"
    if hidden["area"] > curation["max_region"]:
        return "ground", "region_too_large"
    if fault == "mask_degenerate":
        return "segment", fault
    row["verify_consistency"] = hidden["consistency"]
    if hidden["consistency"] < curation["min_verify"]:
        return "verify", "reference_inconsistent"
    return "deduplicate", ""


def stored(rows: pl.DataFrame, curation: dict[str, float] | None = None) -> Stored:
    return Stored("here", rows.lazy(), {"curation": OWN if curation is None else curation})


def asked(changes: dict[str, float]) -> list[str]:
    return [f"{name}={value}" for name, value in changes.items()]


def cut(rows: pl.DataFrame, *bounds: str) -> Recut:
    found = stored(rows)
    return recut(found, cut_of(found, bounds))[""]


def counts(books: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    return {
        (entry["stage"], reason): count
        for entry in books
        for status in ("rejected", "failed")
        for reason, count in entry[status].items()
    }


@settings(deadline=None, max_examples=60)
@given(st.lists(HIDDEN, min_size=1, max_size=25), CHANGES)
def test_a_recut_is_the_build_it_names_but_for_what_it_calls_unmeasured(
    hidden: list[dict[str, Any]], changes: dict[str, float]
) -> None:
    before = stored(build(hidden, OWN))
    bounds = cut_of(before, asked(changes))
    found = recut(before, bounds)[""]
    needed, without = settings_for(bounds)
    assert without == []
    rebuilt = build(hidden, OWN | needed)
    truth = funnel_of(rebuilt)
    reconcile(found.after)
    unmeasured = sum(entry["unmeasured"] for entry in found.after)
    built, told = counts(truth), counts(found.after)
    assert all(count <= built.get(place, 0) for place, count in told.items())
    assert found.after[-1]["kept"] <= truth[-1]["kept"]
    spare = sum(built.values()) - sum(told.values()) + truth[-1]["kept"] - found.after[-1]["kept"]
    assert spare == unmeasured
    for kind in TrainsAs:
        assert found.trains_after[kind] <= rebuilt.filter(pl.col("trains_as") == kind).height
    assert sum(found.trains_after.values()) == len(hidden)


@settings(deadline=None, max_examples=30)
@given(st.lists(HIDDEN, max_size=25))
def test_a_cut_at_the_runs_own_thresholds_is_the_runs_own_funnel(hidden: list[dict[str, Any]]) -> None:
    rows = build(hidden, OWN)
    own = {name: value for name, value in run_values({"curation": OWN}).items() if value is not None}
    found = cut(rows, *asked(own))
    plain = [{key: value for key, value in entry.items() if key != "unmeasured"} for entry in found.after]
    assert plain == funnel_of(rows)
    assert not any(entry["unmeasured"] for entry in found.after)
    assert {**found.trains_before, "unmeasured": 0} == found.trains_after


@settings(deadline=None, max_examples=30)
@given(st.lists(HIDDEN, max_size=25), st.sampled_from([each.name for each in THRESHOLDS]), TENTHS, TENTHS)
def test_a_stricter_threshold_never_keeps_more(
    hidden: list[dict[str, Any]], name: str, one: float, other: float
) -> None:
    threshold = next(each for each in THRESHOLDS if each.name == name)
    loose, strict = sorted((one, other), reverse=not threshold.at_least)
    rows = build(hidden, OWN)
    kept = [cut(rows, f"{name}={value * threshold.largest}").after[-1]["kept"] for value in (loose, strict)]
    assert kept[1] <= kept[0]


@settings(deadline=None, max_examples=20)
@given(st.lists(HIDDEN, max_size=20), CHANGES, st.randoms(use_true_random=False))
def test_the_order_of_bounds_plays_no_part(hidden: list[dict[str, Any]], changes: dict[str, float], order: Any) -> None:
    rows = build(hidden, OWN)
    bounds = [*asked(changes), "score.sharpness>=0.3", "score.sharpness<=0.9"]
    mixed = order.sample(bounds, len(bounds))
    assert cut(rows, *bounds) == cut(rows, *mixed)


def row(**changes: Any) -> dict[str, Any]:
    """A kept row with high scores, changed."""
    kept = {
        "position": 0, "iid": "i0", "status": "kept", "stage": "deduplicate", "reason": "", "needs_reference": False,
        "frames": 9, "score_overall": 9.0, "score_first_frame": 9.0, "score_sharpness": 0.9, "region_area": 0.5,
        "verify_consistency": 0.9, "trains_as": "quadruplet", "task": "local_add", "dup_of": "",
    }  # fmt: skip
    return kept | changes


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    return conform(pl.DataFrame([{**each, "position": place} for place, each in enumerate(rows)], SCHEMA))


def stage(found: Recut, name: str) -> dict[str, Any]:
    return found.after[CURATION_STAGES.index(name)]


def test_a_repetition_whose_first_left_is_unmeasured_and_not_promoted() -> None:
    repeats = {"status": "rejected", "reason": "duplicate_reference", "dup_of": "first", "trains_as": "instruction"}
    rows = table(row(iid="first", score_overall=7.0), row(iid="second", **repeats))
    found = cut(rows, "score.overall=8")
    assert stage(found, "score")["rejected"] == {"score_below_threshold": 1}
    assert stage(found, "deduplicate")["unmeasured"] == 1
    assert found.after[-1]["kept"] == 0
    assert found.trains_after == {"quadruplet": 0, "instruction": 1, "nothing": 0, "unmeasured": 1}


def test_a_repetition_whose_first_stands_stays_rejected_and_a_stage_before_may_take_it() -> None:
    repeats = {"status": "rejected", "reason": "duplicate_reference", "dup_of": "first", "trains_as": "instruction"}
    rows = table(row(iid="first"), row(iid="second", **repeats), row(iid="third", **repeats, score_overall=7.0))
    found = cut(rows, "score.overall=8")
    assert stage(found, "score")["rejected"] == {"score_below_threshold": 1}
    assert stage(found, "deduplicate")["rejected"] == {"duplicate_reference": 1}
    assert found.after[-1]["kept"] == 1


def test_a_crop_whose_first_fails_only_later_stays_a_repetition() -> None:
    repeats = {"status": "rejected", "stage": "unique_crops", "reason": "duplicate_crop", "dup_of": "first"}
    rows = table(row(iid="first", verify_consistency=0.6), row(iid="second", **repeats, trains_as="instruction"))
    assert stage(cut(rows, "verify.consistency=0.7"), "unique_crops")["rejected"] == {"duplicate_crop": 1}
    assert stage(cut(rows, "ground.largest=0.6"), "unique_crops")["rejected"] == {"duplicate_crop": 1}
    taken = table(row(iid="first", region_area=0.7), row(iid="second", **repeats, trains_as="instruction"))
    assert stage(cut(taken, "ground.largest=0.6"), "unique_crops")["unmeasured"] == 1


def test_a_row_that_comes_back_meets_the_other_bounds_of_its_stage() -> None:
    small = {"status": "rejected", "stage": "ground", "reason": "region_too_small", "region_area": 0.05}
    rows = table(row(iid="a", **small, trains_as="instruction", verify_consistency=None))
    assert stage(cut(rows, "ground.smallest=0.01"), "segment")["unmeasured"] == 1
    assert stage(cut(rows, "ground.smallest=0.01", "ground.largest=0.02"), "ground")["rejected"] == {
        "region_too_large": 1
    }


def test_what_was_not_measured_where_a_bound_asks_for_it_is_unmeasured() -> None:
    rows = table(row(score_sharpness=None), row(iid="b", score_sharpness=0.2), row(iid="c"))
    found = cut(rows, "score.sharpness=0.5")
    assert stage(found, "score")["unmeasured"] == 1
    assert stage(found, "score")["rejected"] == {"score.sharpness below 0.5": 1}


def test_a_pair_with_a_reference_of_its_own_has_no_region_to_be_held_against() -> None:
    found = cut(table(row(region_area=None)), "ground.smallest=0.6")
    assert found.after[-1]["kept"] == 1


def test_a_split_adds_up_to_the_whole() -> None:
    rows = table(row(), row(iid="b", task="global_style", score_overall=7.0), row(iid="c", task=""))
    source = stored(rows)
    found = recut(source, cut_of(source, ["score.overall=8"]), "task")
    assert set(found) == {"", "local_add", "global_style", "not stated"}
    parts = [part for name, part in found.items() if name]
    for place in range(len(CURATION_STAGES)):
        for key in ("rows_in", "kept"):
            assert sum(part.after[place][key] for part in parts) == found[""].after[place][key]


def test_lowering_the_score_lowers_what_trains_as_instruction_and_raising_it_does_not() -> None:
    source = stored(table(row()))
    assert settings_for(cut_of(source, ["score.overall=4"]))[0] == {"min_reference_score": 4.0, "min_score": 4.0}
    assert settings_for(cut_of(source, ["score.overall=8"]))[0] == {"min_reference_score": 8.0}
    assert settings_for(cut_of(source, [f"{INSTRUCTION}=7"]))[0] == {"min_reference_score": 7.0, "min_score": 7.0}
    assert settings_for(cut_of(source, [f"{INSTRUCTION}=3"]))[0] == {"min_reference_score": 6.0, "min_score": 3.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("score.overal=8", "there is: score.first_frame, score.overall"),
        ("prompt.length=8", "no threshold or measurement"),
        ("score.overall", "is no NAME=VALUE"),
        ("score.overall=high", "no number"),
        ("score.overall=nan", "no bound"),
        ("score.overall=11", "outside 0 to 10"),
        ("verify.consistency=7", "outside 0 to 1"),
    ],
)
def test_a_bound_that_cannot_be_asked_is_refused_with_what_can(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        cut_of(stored(table(row())), [text])
    assert words in str(caught.value)


def test_contradictions_are_refused() -> None:
    source = stored(table(row()))
    for bounds in (["score.overall=8", "score.overall=7"], ["score.overall=5", f"{INSTRUCTION}=6"]):
        for order in itertools.permutations(bounds):
            with pytest.raises(UsageError, match=r"twice|below"):
                cut_of(source, order)
    with pytest.raises(UsageError, match="source_dataset"):
        recut(source, cut_of(source, []), "prompt")


def test_a_measurement_that_a_dataset_lacks_is_named() -> None:
    source = stored(table(row()).drop("score_first_frame"))
    with pytest.raises(UsageError, match="score_first_frame was not measured"):
        cut_of(source, ["score.first_frame=5"])


def test_the_table_holds_every_threshold_of_the_reasons() -> None:
    """A reason that names a threshold is in the table, with settings that exist."""
    named = {reason for reason in Reason if reason.endswith(("_below_threshold", "_too_small", "_too_large"))}
    assert named <= {each.reason for each in THRESHOLDS}
    assert set(OWN) == {name for each in THRESHOLDS for name in each.settings}


def test_a_work_folder_is_cut_before_anything_is_published(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no dataset and no curated rows"):
        stored_workdir(tmp_path)
    folder = tmp_path / "curation" / "key" / "deduplicated"
    folder.mkdir(parents=True)
    table(row(), row(iid="b", score_overall=7.0)).write_parquet(folder / "part-00000.parquet")
    (tmp_path / "configuration.json").write_text(json.dumps({"curation": OWN}))
    source = stored_workdir(tmp_path)
    found = recut(source, cut_of(source, ["score.overall=8"]))
    assert found[""].after[-1]["kept"] == 1
    told = said(found, source, cut_of(source, ["score.overall=8"]))
    assert told["settings"] == {"curation.min_reference_score": 8.0}
    assert told["thresholds"]["score.overall"] == {"run": 6.0, "now": 8.0}


def test_a_recut_of_a_real_build_is_the_rebuild_with_the_settings_it_names(
    make_configuration: Callable[..., RunConfiguration],
) -> None:
    """Rendered pairs, a third of them with references of their own, which the verifier treats more loosely."""
    source = SourceSettings(kind="procedural", level="rich", clips=24, images=2, frames=3, size=32)
    built = build_dataset(make_configuration("one", source=source))
    rows = stored_dataset(Path(built["path"]))
    bounds = cut_of(rows, ["verify.consistency=0.93", "ground.smallest=0.05", "score.overall=9"])
    found = recut(rows, bounds)[""]
    needed, _ = settings_for(bounds)
    rebuilt = build_dataset(make_configuration("two", source=source, curation=CurationSettings(**needed)))
    assert [entry["unmeasured"] for entry in found.after] == [0] * len(CURATION_STAGES)
    assert counts(found.after) == counts(rebuilt["funnel"])
    assert counts(found.after) != counts(built["funnel"])
    kinds = {kind: found.trains_after[kind] for kind in ("quadruplet", "instruction")}
    assert kinds == {"quadruplet": rebuilt["quadruplets"], "instruction": rebuilt["instruction"]}
    reasons = {reason for _, reason in counts(found.after)}
    assert "reference_inconsistent" in reasons


def test_a_run_under_way_shows_the_stages_that_are_finished(
    tmp_path: Path, make_configuration: Callable[..., RunConfiguration]
) -> None:
    source = SourceSettings(kind="procedural", clips=3, images=1, frames=3, size=32)
    configuration = make_configuration(source=source, curation=CurationSettings(shards=2))
    workdir = Path(configuration.workspace)
    assert books_of_workdir(workdir) == []
    (workdir / "configuration.json").write_text(configuration.canonical())
    plan_shards(configuration, silent())
    for shard in (0, 1):
        run_stage(configuration, "ingest", shard, silent())
    run_stage(configuration, "score", 0, silent())
    books = books_of_workdir(workdir)
    assert [(entry["stage"], entry["rows_in"]) for entry in books] == [("ingest", 4), ("score", 2)]


def test_a_part_that_was_cut_short_is_named(tmp_path: Path) -> None:
    said_files = [{"path": "part-00000.parquet", "bytes": 1, "sha256": "", "entries": 1}]
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "kiwi-dataset/1", "files": said_files}))
    table(row()).write_parquet(tmp_path / "part-00000.parquet")
    whole = (tmp_path / "part-00000.parquet").read_bytes()
    for broken in (whole[:-9], b"", b"PAR1"[:2]):
        (tmp_path / "part-00000.parquet").write_bytes(broken)
        with pytest.raises(UsageError, match="no Parquet, or cut short"):
            stored_dataset(tmp_path)


def test_a_dataset_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    said_files = [{"path": "rows/part-00000.parquet", "bytes": 1, "sha256": "", "entries": 1}]
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "kiwi-dataset/1", "files": said_files}))
    with pytest.raises(UsageError, match="is not there"):
        stored_dataset(tmp_path)
