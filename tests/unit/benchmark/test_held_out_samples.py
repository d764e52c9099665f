from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kiwi.benchmark.edits import plan_batches, requests_for
from kiwi.benchmark.measured import MeasuredJudge, changed_region
from kiwi.benchmark.rubric import JudgeView, judge_view
from kiwi.benchmark.samples import BenchmarkError, load_held_out
from kiwi.configuration import SourceSettings
from kiwi.errors import KiwiError
from kiwi.media import decode

REAL = Path(os.environ.get("KIWI_REAL_PAIRS", Path(__file__).parents[4] / "shared" / "data" / "real"))


def test_the_same_configuration_holds_out_the_same_samples(configuration):
    first, second = load_held_out(configuration), load_held_out(configuration)
    assert first.revision == second.revision
    assert [each.fingerprint() for each in first.samples] == [each.fingerprint() for each in second.samples]
    assert len({each.sample_id for each in first.samples}) == len(first.samples) == 32


@pytest.mark.parametrize("change", [{"seed": 5}, {"samples_per_kind": 5}, {"sampling_steps": 7}])
def test_another_benchmark_has_another_revision(configuration, change):
    other = configuration.model_copy(update={"benchmark": configuration.benchmark.model_copy(update=change)})
    assert load_held_out(other).revision != load_held_out(configuration).revision


def test_more_samples_of_a_kind_keep_the_ones_before(configuration):
    more = configuration.benchmark.model_copy(update={"samples_per_kind": 6})
    larger = load_held_out(configuration.model_copy(update={"benchmark": more}))
    known = {each.sample_id: each.fingerprint() for each in larger.samples}
    assert all(known[each.sample_id] == each.fingerprint() for each in load_held_out(configuration).samples)


def test_a_judge_is_shown_neither_the_answer_nor_the_kind_but_the_sort_of_edit(held_out):
    sample = held_out.of_kind("recolour")[0]
    shown = vars(sample.view(sample.truth))
    assert set(shown) == {"source", "edit", "reference", "rubric", "prompt", "edit_mask", "truth", "category"}
    assert shown["category"] == "local_change"


def test_only_samples_with_something_to_confuse_get_a_control(held_out):
    arms = {kind: {each.arm for each in requests_for(held_out.of_kind(kind), True)} for kind in held_out.kinds}
    assert arms["recolour"] == arms["swap"] == {"result", "wrong_instruction"}
    assert arms["subject_reference"] == {"result", "swapped_reference"}
    assert arms["background_reference"] == {"result", "wrong_latents"}
    assert arms["remove"] == {"result"}
    assert {each.arm for each in requests_for(held_out.of_kind("swap"), False)} == {"result"}


def test_batches_of_other_requests_have_other_files(held_out, tmp_path):
    def names(**options):
        asked = {"sampling_steps": 5, "controls": True} | options
        return {batch.path.name for batch in plan_batches(held_out, tmp_path, **asked) if batch.kind == "recolour"}

    assert len(names() | names(controls=False) | names(at_most=2) | names(sampling_steps=6)) == 4


def clip(seed: int, shade: int = 0, frames: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    still = np.kron(rng.integers(40, 200, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    made = np.stack([np.roll(still, t, axis=1) for t in range(frames)])
    made[:, 10:30, 10:30] += np.uint8(shade)
    return made


@pytest.fixture
def pairs(configuration, monkeypatch):
    """A published dataset of three held-out rows: guided by a reference, by words alone, and an image."""
    import polars

    from kiwi.media import encode_video, png_bytes

    media = {
        "a.source": encode_video(None, clip(1), 8),
        "a.target": encode_video(None, clip(1, 50), 8),
        "same": encode_video(None, clip(2), 8),
        "still": png_bytes(clip(3)[0]),
    }
    common = {"split": "benchmark", "prompt": "Make the box brighter.", "media": "video", "ref_image_bytes": None}
    rows = [
        {
            "iid": "guided",
            "src_video": "a.source",
            "tgt_video": "a.target",
            "edit_type": "background_reference",
            "task": "background_change",
            "trains_as": "quadruplet",
            "ref_image_bytes": png_bytes(clip(4)[0]),
        },
        {
            "iid": "told",
            "src_video": "a.source",
            "tgt_video": "a.target",
            "edit_type": "local_change",
            "task": "local_change",
            "trains_as": "instruction",
        },
        {
            "iid": "image",
            "src_video": "still",
            "tgt_video": "still",
            "edit_type": "local_change",
            "task": "local_change",
            "trains_as": "instruction",
            "media": "image",
        },
        {
            "iid": "unchanged",
            "src_video": "same",
            "tgt_video": "same",
            "edit_type": "local_change",
            "task": "local_change",
            "trains_as": "instruction",
        },
    ]
    table = polars.DataFrame([common | row | {"position": place} for place, row in enumerate(rows)])
    reader = SimpleNamespace(read_split=lambda folder, split: table, open_media=lambda folder, member: media[member])
    monkeypatch.setitem(sys.modules, "kiwi.dataset.reader", reader)
    (configuration.workdir / "dataset.json").write_text(json.dumps({"path": "dataset"}))
    source = SourceSettings(kind="pairs", pairs="unused")
    return configuration.model_copy(update={"source": source})


def test_held_out_pairs_become_samples_without_answers(pairs):
    held_out = load_held_out(pairs)
    guided, told = held_out.samples
    assert (guided.group, guided.rubric, told.group, told.rubric) == (
        "background",
        "background",
        "instruction",
        "subject",
    )
    assert guided.reference.shape == (48, 64, 3)
    assert told.reference is None
    assert guided.source.shape == guided.truth.shape == (5, 48, 64, 3)
    assert guided.edit_mask[:, 15:25, 15:25].all()
    assert not guided.has_answer
    assert [each["id"] for each in held_out.excluded] == ["image", "unchanged"]


def test_pairs_are_scored_with_no_accuracy_and_no_invented_criterion(pairs, fake_editor):
    from kiwi.benchmark.judge import judge_edits
    from kiwi.benchmark.run import run_benchmark
    from kiwi.tracking import silent

    samples = load_held_out(pairs)

    def one(video, instruction, *references):
        return next(each.truth for each in samples.samples if each.prompt == instruction)

    editor = fake_editor(samples, lambda sample: sample.truth)
    editor.one = one
    run_benchmark(pairs, silent(), load=lambda folder: editor)
    scores = judge_edits(pairs, silent())
    assert scores["coverage"] == 1.0
    assert len(scores["excluded"]) == 2
    assert not any("accuracy" in name for name in scores["learning"])
    assert scores["overall"] > 4


def test_a_run_whose_held_out_rows_are_all_unusable_says_so(pairs, monkeypatch):
    import polars

    reader = sys.modules["kiwi.dataset.reader"]
    table = reader.read_split("", "benchmark")
    monkeypatch.setattr(reader, "read_split", lambda *asked: table.filter(polars.col("iid") == "image"))
    with pytest.raises(BenchmarkError, match="1 rows were held out"):
        load_held_out(pairs)
    (pairs.workdir / "dataset.json").unlink()
    with pytest.raises(KiwiError, match="no dataset was published"):
        load_held_out(pairs)


@pytest.mark.skipif(not (REAL / "pairs.csv").exists(), reason=f"no real pairs at {REAL} (set KIWI_REAL_PAIRS)")
def test_real_edits_are_ranked_truth_then_half_then_shuffled_or_wrong_then_copy_and_black():
    listed = list(csv.DictReader((REAL / "pairs.csv").open()))
    chosen = [row for row in listed if row["edit_type"] in ("local_remove", "background_reference")][:3:2]
    opened = [opened_pair(row) for row in chosen]
    for row, (source, truth), (_, other) in zip(chosen, opened, opened[::-1], strict=True):
        rubric = "background" if "background" in row["edit_type"] else "subject"
        region = changed_region(source, truth)

        def scored(edit, rubric=rubric, source=source, truth=truth, region=region):
            view = JudgeView(source, edit, None, rubric, "", region, truth)
            return sum(judge_view(MeasuredJudge(), view).values()) / 3

        half = ((source.astype(int) + truth) // 2).astype(np.uint8)
        shuffled = truth[np.random.default_rng(0).permutation(len(truth))]
        wrong = truth.copy()  # what another reference would have put there
        wrong[region] = np.resize(other, truth.shape)[region]
        assert scored(truth) == 5.0
        assert scored(half) > 1.3 > scored(source) == 1.0, row["id"]
        assert scored(shuffled) < scored(truth) - 0.3, row["id"]  # one of the clips hardly moves
        assert scored(wrong) < scored(half), row["id"]
        assert scored(np.zeros_like(source)) < 1.3, row["id"]


def opened_pair(row):
    """Source and truth of a real pair, every tenth frame."""
    source = decode(REAL / row["src_video"], pixel_budget=65536).frames[::10]
    truth = decode(REAL / row["tgt_video"], size=source.shape[1:3]).frames[::10]
    length = min(len(source), len(truth))
    return source[:length], truth[:length]
