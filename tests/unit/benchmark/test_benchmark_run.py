from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kiwi.benchmark.judge import judge_edits
from kiwi.benchmark.run import ChampionRef, run_benchmark
from kiwi.benchmark.samples import BenchmarkError, load_held_out
from kiwi.errors import KiwiError, UsageError
from kiwi.hashing import sha256_of
from kiwi.tracking import silent, task_run
from kiwi.tracking.records import attempt_of, read_records


class Models:
    """Loads a fake editor for each model folder, by the text in its `weights`, and remembers what was loaded."""

    def __init__(self, fake_editor, configuration, **edits):
        held_out = load_held_out(configuration)
        self.editors = {name: fake_editor(held_out, edit) for name, edit in edits.items()}
        self.loaded: list[str] = []

    def __call__(self, folder: Path):
        name = (folder / "weights").read_text()
        self.loaded.append(name)
        return self.editors[name]


def copied(sample):
    return sample.source


def perfect(sample):
    return sample.truth


def half(sample):
    return ((sample.source.astype(int) + sample.truth) // 2).astype(np.uint8)


@pytest.fixture
def models(fake_editor, configuration):
    return Models(fake_editor, configuration, align=copied, reference=perfect, former=half)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_perfect_editor_gets_full_marks_and_a_copying_stage_the_lowest(configuration, models):
    run_benchmark(configuration, silent(), load=models)
    scores = judge_edits(configuration, silent())
    assert scores["overall"] == scores["overall_sample_weighted"] == scores["overall_reference"] == 5.0
    assert scores["coverage"] == 1.0
    assert scores["failures"] == []
    assert scores["samples"] == 32
    assert scores["baselines"]["copy_source"]["overall"] == 1.0
    assert scores["stages"]["align"]["overall"] == 1.0
    assert scores["stages"]["reference"]["samples"] == scores["stages"]["align"]["samples"] == 16
    assert scores["stages"]["align"]["psnr_full_gain"] == 0


def test_controls_show_that_a_good_editor_follows_what_it_is_given(configuration, models):
    run_benchmark(configuration, silent(), load=models)
    learning = judge_edits(configuration, silent())["learning"]
    for kind in ("recolour", "swap", "subject_reference"):
        assert learning[f"accuracy_{kind}"] == 1.0
    assert learning["accuracy_wrong_instruction"] == 0.0
    assert learning["accuracy_swapped_reference"] == 0.0
    assert learning["background_reference_loss_db"] > 10
    assert learning["psnr_full_gain"] == pytest.approx(learning["psnr_full"] - learning["copy_psnr_full"], abs=1e-3)


def test_an_editor_deaf_to_its_conditions_is_found_out_by_the_controls(configuration, fake_editor):
    models = Models(fake_editor, configuration, align=copied, reference=perfect)
    models.editors["reference"].one = lambda video, *asked: models.editors["reference"].samples[video.tobytes()].truth
    run_benchmark(configuration, silent(), load=models)
    learning = judge_edits(configuration, silent())["learning"]
    assert learning["accuracy_wrong_instruction"] == learning["accuracy_swapped_reference"] == 1.0
    assert learning["background_reference_loss_db"] == 0.0


def test_the_same_configuration_gives_the_same_bytes(configuration, models, tmp_path):
    run_benchmark(configuration, silent(), load=models)
    judge_edits(configuration, silent())
    first = tree(configuration.workdir / "benchmark")
    shutil.rmtree(configuration.workdir / "benchmark")
    run_benchmark(configuration, silent(), load=models)
    judge_edits(configuration, silent())
    assert tree(configuration.workdir / "benchmark") == first
    assert str(tmp_path).encode() not in b"".join(body for name, body in first.items() if name.endswith(".json"))


def test_a_finished_benchmark_is_reused_without_loading_a_model(configuration, models):
    first = run_benchmark(configuration, silent(), load=models)
    models.loaded.clear()
    assert run_benchmark(configuration, silent(), load=models) == first
    assert models.loaded == []


def test_a_benchmark_tells_how_far_it_is_from_before_its_first_edit_to_its_last(configuration, models):
    told = []
    run_benchmark(configuration, silent(), load=models, told=lambda done, total: told.append((done, total)))
    (total,) = {of for _, of in told}
    steps = [done for done, _ in told]
    assert (steps[0], steps[-1]) == (0, total)
    assert steps == sorted(set(steps))
    assert len(steps) > 8, "eight kinds, each in a batch of its own"


def test_a_killed_benchmark_makes_only_the_batches_it_lacks(configuration, models, monkeypatch):
    editor = models.editors["reference"]
    whole = editor.edit
    left = iter([True] * 9)

    def dying(sample):
        if next(left, False):
            return whole(sample)
        raise KeyboardInterrupt

    editor.edit = dying
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(configuration, silent(), load=models)
    made = tree(configuration.workdir / "benchmark")
    assert 0 < len(made) < 8
    assert not any(name.endswith(".json") for name in made)
    editor.edit = whole
    editor.calls.clear()
    run_benchmark(configuration, silent(), load=models)
    assert sum(editor.calls) == 32 + 4 * 4 - 4 * 2 * len(made)
    judge_edits(configuration, silent())
    assert json.loads((configuration.workdir / "benchmark" / "scores.json").read_text())["overall"] == 5.0


def test_lost_and_misshapen_edits_lower_coverage_and_are_listed(configuration, models):
    run_benchmark(configuration, silent(), load=models)
    edits = json.loads((configuration.workdir / "benchmark" / "edits.json").read_text())
    folder = configuration.workdir / "benchmark" / edits["models"][0]["shards"]
    broken = next(folder.glob("style-*"))
    broken.write_bytes(broken.read_bytes()[:100])
    scores = judge_edits(configuration, silent())
    assert scores["coverage"] == 28 / 32
    assert [failure["reason"] for failure in scores["failures"]] == ["edit_missing"] * 4
    assert scores["per_kind"]["style"]["judged"] == 0
    assert scores["per_kind"]["style"]["overall"] is None
    assert "psnr_full" not in scores["per_kind"]["style"]
    assert scores["overall"] == 5.0


def test_edits_that_are_cut_short_lost_or_exchanged_are_told_apart_and_made_again(configuration, models):
    run_benchmark(configuration, silent(), load=models)
    home = configuration.workdir / "benchmark"
    folder = home / json.loads((home / "edits.json").read_text())["models"][0]["shards"]
    short, gone, other = (next(folder.glob(f"{kind}-*")) for kind in ("style", "add", "swap"))
    short.write_bytes(short.read_bytes()[:-100])
    gone.unlink()
    edits = load_file(str(other))
    save_file({name: 255 - edit for name, edit in edits.items()}, str(other))
    said = {failure["id"]: failure for failure in judge_edits(configuration, silent())["failures"]}
    assert {failure["reason"] for failure in said.values()} == {"edit_missing"}
    for path, why in ((short, "cut short"), (gone, "not there"), (other, "not the file that edits.json records")):
        kind = path.name.split("-")[0]
        details = [each["detail"] for name, each in said.items() if name.startswith(kind)]
        assert len(details) == 4
        assert all(why in detail and str(path) in detail for detail in details)
    other.unlink()
    run_benchmark(configuration, silent(), load=models)
    assert judge_edits(configuration, silent())["coverage"] == 1.0


def test_an_editor_that_drops_a_frame_is_measured_on_nothing(configuration, fake_editor):
    models = Models(fake_editor, configuration, align=copied, reference=lambda sample: sample.truth[:-1])
    models.editors["reference"].one = lambda video, *asked: video[:-1]
    run_benchmark(configuration, silent(), load=models)
    scores = judge_edits(configuration, silent())
    assert scores["coverage"] == 0.0
    assert scores["overall"] is None
    assert scores["learning"] == {}
    assert {failure["reason"] for failure in scores["failures"]} == {"edit_shape"}


def test_the_gallery_holds_a_few_playable_files_of_every_kind(configuration, models, monkeypatch):
    from kiwi.media import decode, decode_image

    monkeypatch.setattr("kiwi.benchmark.gallery.VIEW_SIDE", 256)
    run_benchmark(configuration, silent(), load=models)
    home = configuration.workdir / "benchmark"
    edits = json.loads((home / "edits.json").read_text())
    for kind in {row["kind"] for row in edits["samples"]}:
        shown = [row for row in edits["samples"] if row["kind"] == kind and row["files"]]
        assert sorted(row["pick"] for row in shown) == ["best", "median", "worst"]
        for row in shown:
            clip = decode(home / row["files"]["result"])
            assert clip.frames.shape == (5, 256, 256, 3)
            assert {"source", "truth", "result"} <= set(row["files"])
            if row["group"] != "instruction":
                assert decode_image((home / row["files"]["reference"]).read_bytes()).shape[2] == 3
    best = next(row for row in edits["samples"] if row["kind"] == "recolour" and row["pick"] == "best")
    assert "wrong_instruction" in best["files"]
    assert all("stage_align" in row["files"] for row in edits["samples"] if row["pick"] == "median")


def champion_of(configuration, **said) -> ChampionRef:
    folder = configuration.workdir.parent / "champion"
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text("former")
    return ChampionRef("kiwi-edit-tiny", "3", folder, **said)


def test_a_champion_without_comparable_scores_edits_the_same_samples(configuration, models):
    stale = {"revision": "another", "judge": "measured/1", "overall": 4.9, "criteria": {}}
    run_benchmark(configuration, silent(), champion_of(configuration, scores=stale), load=models)
    champion = judge_edits(configuration, silent())["champion"]
    assert champion["scores_from"] == "this run"
    assert 1.5 < champion["overall"] < 4.5
    assert champion["coverage"] == 1.0


def test_recorded_scores_of_the_same_revision_and_judge_are_believed(configuration, models):
    run_benchmark(configuration, silent(), load=models)
    recorded = judge_edits(configuration, silent()) | {"overall": 3.25}
    models.loaded.clear()
    run_benchmark(configuration, silent(), champion_of(configuration, scores=recorded), load=models)
    scores = judge_edits(configuration, silent())
    champion = scores["champion"]
    assert "former" not in models.loaded
    assert champion["scores_from"] == "record"
    assert champion["overall"] == 3.25
    assert champion["intervals"] == recorded["intervals"]
    assert all(row["champion_overall"] == row["overall"] for row in scores["per_sample"])


def test_a_champion_is_fetched_only_if_it_must_edit(configuration, models):
    def away() -> Path:
        raise KiwiError("the registry is away")

    run_benchmark(configuration, silent(), ChampionRef("kiwi-edit-tiny", "3", away), load=models)
    scores = judge_edits(configuration, silent())
    assert "registry is away" in scores["champion"]["unmeasured"]
    run_benchmark(configuration, silent(), ChampionRef("kiwi-edit-tiny", "3", away, scores), load=models)
    assert judge_edits(configuration, silent())["champion"]["overall"] == scores["overall"]


def test_a_champion_that_cannot_be_run_is_unmeasured_and_the_run_goes_on(configuration, models):
    def load(folder: Path):
        if folder.name == "champion":
            raise KiwiError("the champion's weights are of another preset")
        return models(folder)

    run_benchmark(configuration, silent(), champion_of(configuration), load=load)
    scores = judge_edits(configuration, silent())
    assert scores["overall"] == 5.0
    assert scores["champion"]["overall"] is None
    assert "another preset" in scores["champion"]["unmeasured"]
    run_benchmark(configuration, silent(), ChampionRef("kiwi-edit-tiny", "3", None), load=models)
    assert "cannot be had" in judge_edits(configuration, silent())["champion"]["unmeasured"]


def test_judging_refuses_edits_of_another_benchmark(configuration, models):
    with pytest.raises(BenchmarkError, match=r"edits\.json is missing"):
        judge_edits(configuration, silent())
    run_benchmark(configuration, silent(), load=models)
    other = configuration.benchmark.model_copy(update={"samples_per_kind": 3})
    with pytest.raises(BenchmarkError, match="run the benchmark again"):
        judge_edits(configuration.model_copy(update={"benchmark": other}), silent())


def test_wrong_use_is_one_clear_line(configuration, models):
    unknown = configuration.benchmark.model_copy(update={"judge": "oracle"})
    with pytest.raises(UsageError, match="oracle"):
        run_benchmark(configuration.model_copy(update={"benchmark": unknown}), silent(), load=models)
    (configuration.workdir / "training" / "reference.json").unlink()
    with pytest.raises(BenchmarkError, match="stage reference is not trained"):
        run_benchmark(configuration, silent(), load=models)
    leaking = configuration.benchmark.model_copy(update={"seed": configuration.source.seed})
    with pytest.raises(BenchmarkError, match="held out"):
        load_held_out(configuration.model_copy(update={"benchmark": leaking}))


def test_all_edits_of_the_candidate_are_kept_with_the_run_and_listed_with_their_hashes(configuration, models):
    with task_run(configuration, "run_benchmark") as task:
        run_benchmark(configuration, task, load=models)
    (record,) = read_records(configuration.workdir, attempt_of(configuration))
    kept = {folder: Path(path) for path, folder in record.artifacts}
    candidate = json.loads(kept["edits"].read_text())["models"][0]
    folder = kept[candidate["shards"]]
    assert {each["file"]: each["sha256"] for each in candidate["files"]} == {
        path.name: sha256_of(path) for path in folder.iterdir()
    }
    assert len(candidate["files"]) == 8


def test_edits_that_were_lost_and_come_out_otherwise_are_judged_anew(configuration, fake_editor, models):
    run_benchmark(configuration, silent(), load=models)
    assert judge_edits(configuration, silent())["overall"] == 5.0
    home = configuration.workdir / "benchmark"
    folder = home / json.loads((home / "edits.json").read_text())["models"][0]["shards"]
    for path in folder.glob("*.safetensors"):
        path.unlink()
    others = Models(fake_editor, configuration, align=copied, reference=copied, former=half)
    run_benchmark(configuration, silent(), load=others)
    assert judge_edits(configuration, silent())["overall"] < 5.0
