"""How curation is carried out: what is found again after a setting changed, early exits, workers, stores, bad rows."""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from kiwi.configuration import CurationSettings, RunConfiguration, SourceSettings
from kiwi.curation import keys, stages, steps
from kiwi.curation.build import build_dataset
from kiwi.curation.curators.classical_score import ClassicalScorer
from kiwi.curation.curators.protocols import Score
from kiwi.curation.errors import CurationError
from kiwi.curation.finished import dataset_folder
from kiwi.curation.plan import plan_shards, read_plan
from kiwi.dataset.assemble import SHOWN, TooFewSamples
from kiwi.dataset.reader import read_rows
from kiwi.dataset.schema import CURATION_STAGES, Reason
from kiwi.dataset.verify import verify_dataset
from kiwi.media import encode_video, png_bytes
from kiwi.sources.procedural import draw
from kiwi.tracking import silent


def configured(workspace: Path, source: SourceSettings | None = None, **curation: Any) -> RunConfiguration:
    return RunConfiguration(
        preset="tiny",
        workspace=str(workspace),
        tracking_uri="",
        stages=(),
        source=source or SourceSettings(clips=14, images=2, frames=5),
        curation=CurationSettings(**{"shards": 2, "chunk_rows": 4, "min_training_pairs": 1, **curation}),
    )


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def built(configuration: RunConfiguration) -> dict[str, str]:
    build_dataset(configuration)
    return contents(dataset_folder(configuration))


def counted_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs are scored from here on."""
    calls: list[int] = []
    original = ClassicalScorer.score_pair

    def score_pair(self: ClassicalScorer, *arguments: Any) -> Score:
        calls.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(ClassicalScorer, "score_pair", score_pair)
    return calls


def test_every_setting_of_curation_is_in_a_key_or_declared_without_effect() -> None:
    read = {name for names in keys.READS.values() for name in names}
    read |= {option for options in keys.CURATOR_SETTINGS.values() for option in options}
    assert set(keys.READS) == set(CURATION_STAGES)
    assert read.isdisjoint(keys.WITHOUT_EFFECT)
    assert read | set(keys.WITHOUT_EFFECT) == set(CurationSettings.model_fields)


def test_a_changed_threshold_does_not_score_again_and_gives_what_a_fresh_build_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict, lenient = configured(tmp_path / "one", min_score=9.2), configured(tmp_path / "one", min_score=5.0)
    build_dataset(strict)
    calls = counted_calls(monkeypatch)
    again = built(lenient)
    assert not calls
    fresh = built(configured(tmp_path / "two", min_score=5.0))
    assert calls
    assert again == fresh
    assert dataset_folder(strict) != dataset_folder(lenient)
    assert set(read_rows(dataset_folder(strict))["reason"]) > {Reason.SCORE_BELOW_THRESHOLD}


def test_a_curator_of_another_version_measures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = configured(tmp_path)
    before = keys.stage_keys(configuration)
    monkeypatch.setattr(ClassicalScorer, "__init__", lambda self: object.__setattr__(self, "version", "next"))
    after = keys.stage_keys(configuration)
    assert [stage for stage in CURATION_STAGES if before[stage] == after[stage]] == ["ingest"]


def test_settings_of_a_curator_that_was_not_chosen_change_no_key(tmp_path: Path) -> None:
    plain = configured(tmp_path)
    other = plain.curation.vlm_score.model_copy(update={"model": "another"})
    changed = plain.model_copy(update={"curation": plain.curation.model_copy(update={"vlm_score": other})})
    assert keys.stage_keys(plain) == keys.stage_keys(changed)


def test_parts_may_lie_at_an_address(tmp_path: Path) -> None:
    """fsspec's store in memory stands for S3 here; tests/integration has the real gateway."""
    expected = built(configured(tmp_path / "folder"))
    configuration = configured(tmp_path / "work").model_copy(update={"store": f"memory://curation-{os.getpid()}"})
    assert built(configuration) == expected
    assert not list((tmp_path / "work" / "curation").glob("stages"))


def test_tasks_without_references_can_leave_before_they_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted_calls(monkeypatch)
    build_dataset(configured(tmp_path / "all"))
    every = len(calls)
    configuration = configured(tmp_path / "few", only_reference_tasks=True)
    result = build_dataset(configuration)
    early = result["funnel"][1]["rejected"]
    assert result["funnel"][1]["stage"] == "score"
    assert early["task_not_eligible"] >= 2
    assert early["image_pair"] == 2
    assert len(calls) - every == 16 - early["task_not_eligible"] - early["image_pair"]
    kept = read_rows(dataset_folder(configuration)).filter(status="kept")["iid"].to_list()
    assert kept == read_rows(dataset_folder(configured(tmp_path / "all"))).filter(status="kept")["iid"].to_list()


def test_a_bad_first_frame_spares_the_rest_of_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score of a first frame is a fake here: the generator draws none that is bad while the clip is good."""
    lengths: list[int] = []

    def score_pair(self: ClassicalScorer, source: Any, target: Any, task: Any) -> Score:
        lengths.append(len(source))
        return Score(overall=2.0 if len(source) == 1 and len(lengths) % 2 else 8.0, name="fake_score")

    monkeypatch.setattr(ClassicalScorer, "score_pair", score_pair)
    configuration = configured(
        tmp_path, SourceSettings(clips=8, images=0, frames=5), min_first_frame_score=5.0, min_quadruplets=0
    )
    result = build_dataset(configuration)
    assert result["funnel"][1]["rejected"] == {"first_frame_below_threshold": 4}
    assert (lengths.count(1), lengths.count(5)) == (8, 4)
    rows = read_rows(dataset_folder(configuration)).filter(reason="first_frame_below_threshold")
    assert set(rows["score_first_frame"]) == {2.0}
    assert set(rows["trains_as"]) == {"nothing"}
    assert rows["score_overall"].null_count() == rows.height


def test_repeated_crops_leave_before_references_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceSettings(clips=8, images=0, frames=5)
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = []
    for number, position in enumerate((0, 0, 1)):  # the first two are one clip under two instructions
        sample = draw(source, position, "recolour", 5)
        for side, frames in (("source", sample.source), ("target", sample.target)):
            encode_video(folder / f"{number}-{side}.mp4", frames, 8, lossless=True)
        row = {"src_video": f"{number}-source.mp4", "tgt_video": f"{number}-target.mp4", "edit_type": "local_change"}
        rows.append(row | {"prompt": f"Wording {number}: {sample.prompt}"})
    with open(folder / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    made: list[int] = []
    original = steps.png_bytes
    own = SourceSettings(kind="pairs", pairs=str(folder))
    configuration = configured(tmp_path / "work", own, unique_crops=True)
    monkeypatch.setattr(steps, "png_bytes", lambda *a, **k: made.append(1) or original(*a, **k))
    result = build_dataset(configuration)
    crops = next(entry for entry in result["funnel"] if entry["stage"] == "unique_crops")
    assert crops == {"stage": "unique_crops", "rows_in": 3, "kept": 2, "rejected": {"duplicate_crop": 1}, "failed": {}}
    assert read_rows(dataset_folder(configuration))["status"].to_list() == ["kept", "rejected", "kept"]


def test_an_id_that_comes_twice_fails_the_second_row(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    sample = draw(SourceSettings(), 0, "recolour", 3)
    encode_video(folder / "a.mp4", sample.source, 8)
    encode_video(folder / "b.mp4", sample.target, 8)
    (folder / "pairs.csv").write_text(
        "id,src_video,tgt_video,prompt\nx,a.mp4,b.mp4,Make it red\ny,a.mp4,b.mp4,Make it blue\nx,a.mp4,b.mp4,Paint it\n"
    )
    configuration = configured(tmp_path / "work", SourceSettings(kind="pairs", pairs=str(folder)), min_quadruplets=0)
    build_dataset(configuration)
    rows = read_rows(dataset_folder(configuration))
    assert rows["reason"].to_list()[2] == "duplicate_id"
    assert "row 0" in rows["detail"].to_list()[2]
    assert (rows["reason"] == "duplicate_id").sum() == 1


def test_a_part_that_was_cut_short_is_one_clear_error(tmp_path: Path) -> None:
    configuration = configured(tmp_path)
    for shard in plan_shards(configuration, silent()):
        stages.run_stage(configuration, "ingest", shard, silent())
    part = Path(read_plan(configuration).part("ingest", 0, 0))
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(CurationError, match="part-00000"):
        stages.run_stage(configuration, "score", 0, silent())


def test_of_rows_that_are_no_use_a_few_keep_their_clips_to_be_looked_at(tmp_path: Path) -> None:
    source = SourceSettings(clips=4, images=SHOWN + 6, frames=5)
    configuration = configured(tmp_path, source, only_reference_tasks=True)
    build_dataset(configuration)
    images = read_rows(dataset_folder(configuration)).filter(media="image")
    assert images.height == SHOWN + 6
    assert (images["src_video"] != "").to_list() == [True] * SHOWN + [False] * 6
    assert verify_dataset(dataset_folder(configuration)).passed


def listed(folder: Path, rows: list[dict[str, str]]) -> SourceSettings:
    """A user's list over the two clips of one edit, a.mp4 and b.mp4."""
    folder.mkdir()
    sample = draw(SourceSettings(), 0, "recolour", 5)
    encode_video(folder / "a.mp4", sample.source, 8, lossless=True)
    encode_video(folder / "b.mp4", sample.target, 8, lossless=True)
    (folder / "reference.png").write_bytes(png_bytes(sample.target[0]))
    with open(folder / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["src_video", "tgt_video", "prompt", "edit_type", "ref_image"])
        writer.writeheader()
        writer.writerows({"src_video": "a.mp4", "tgt_video": "b.mp4"} | row for row in rows)
    return SourceSettings(kind="pairs", pairs=str(folder))


def test_of_a_pair_listed_twice_the_copy_that_was_kept_stays(tmp_path: Path) -> None:
    same = {"prompt": "Paint it red"}
    source = listed(tmp_path / "p", [same | {"edit_type": "global_style"}, same | {"edit_type": "local_change"}])
    configuration = configured(tmp_path / "work", source)
    build_dataset(configuration)
    rows = read_rows(dataset_folder(configuration))
    assert rows["reason"].to_list() == ["task_not_eligible", ""]
    assert rows["trains_as"].to_list() == ["nothing", "quadruplet"]
    assert rows["dup_of"].to_list() == [rows["iid"][1], ""]


def test_a_pair_with_a_reference_of_its_own_is_no_victim_of_a_guessed_task(tmp_path: Path) -> None:
    source = listed(tmp_path / "p", [{"prompt": "Do as shown", "ref_image": "reference.png"}])
    for early in (False, True):
        configuration = configured(tmp_path / f"work{early}", source, only_reference_tasks=early, min_verify=0.0)
        assert build_dataset(configuration)["quadruplets"] == 1


def test_settings_without_effect_leave_no_trace_in_the_dataset(tmp_path: Path) -> None:
    plain = configured(tmp_path / "one")
    other = plain.curation.model_copy(
        update={
            "sam3": plain.curation.sam3.model_copy(update={"batch": 3, "model": "another"}),
            "duplicate_memory": 9.0,
        }
    )
    changed = configured(tmp_path / "two").model_copy(update={"curation": other})
    assert built(plain) == built(changed)


def test_a_finished_dataset_is_held_to_raised_floors(tmp_path: Path) -> None:
    build_dataset(configured(tmp_path))
    with pytest.raises(TooFewSamples, match="of the 500 needed"):
        build_dataset(configured(tmp_path, min_quadruplets=500))


@pytest.mark.parametrize("store", ["http://bucket/x", "s3://", "ftp://x"])
def test_a_store_that_is_no_place_is_refused(store: str, tmp_path: Path) -> None:
    from kiwi.errors import UsageError
    from kiwi.presets import build

    with pytest.raises(UsageError, match="neither a folder nor s3"):
        build("tiny", workspace=tmp_path, tracking_uri="", store=store)
