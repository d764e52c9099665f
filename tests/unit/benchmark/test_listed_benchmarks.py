"""RefVIE-Bench and OpenVE-Bench (their layouts, with drawn clips): edited, resumed, judged, set in their table."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "services"))
from scripted_server import MODEL, chat, serving

from kiwi.benchmark.judge import judge_edits
from kiwi.benchmark.listed import load_listed
from kiwi.benchmark.listed_edits import Shard, edit_listed
from kiwi.benchmark.listed_scores import judge_listed
from kiwi.benchmark.preference.edit_sets import read_edit_set
from kiwi.benchmark.published import published_table
from kiwi.benchmark.run import ChampionRef
from kiwi.benchmark.samples import BenchmarkError
from kiwi.benchmark.tables import score_table
from kiwi.cli.run import configure
from kiwi.configuration import ServiceSettings, VlmSettings
from kiwi.errors import UsageError
from kiwi.hashing import sha256_of
from kiwi.media import encode_video, png_bytes
from kiwi.registry.contest import benchmark_with_champion
from kiwi.registry.gate import decide_gate
from kiwi.storage import StorageError
from kiwi.tracking import silent, task_run
from kiwi.tracking.records import attempt_of, read_records


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("KIWI_VLM") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def refvie(tmp_path) -> Path:
    root = tmp_path / "RefVIE-Bench"
    (root / "videos").mkdir(parents=True)
    drawn = np.random.default_rng(0)
    entries = []
    for number, kind in enumerate(("subject", "background", "subject")):
        clip = np.repeat(drawn.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8).repeat(8, 1), 8, 2)
        encode_video(root / "videos" / f"{number}.mp4", clip, 8.0)
        (root / f"{number}.png").write_bytes(png_bytes(clip[0]))
        said = f"src_video: videos/{number}.mp4, instruction: edit {number}, ref_img: {number}.png, edit_type: {kind}"
        entries.append(f"- {{{said}}}")
    (root / "refvie_bench.yaml").write_text("\n".join(entries))
    return root


@pytest.fixture
def asked(configuration):
    mllm, service = VlmSettings(model=MODEL, max_frames=2), ServiceSettings(concurrency=4, attempts=1, cache=False)
    more = {"judge": "mllm", "mllm": mllm, "service": service}
    return configuration.model_copy(update={"benchmark": configuration.benchmark.model_copy(update=more)})


class Inverting:
    """A FAKE editor: the clip's colours turned round; it notes what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.calls: list[int] = []

    def __call__(self, videos, instructions, references=None, *, num_inference_steps, seed, latent_references=None):
        self.seen += instructions
        self.calls.append(len(videos))
        return [255 - video for video in videos]


def mean_marks(body) -> str:
    first, second, third = body["response_format"]["json_schema"]["schema"]["required"][1:]
    return f'{{"reasoning": "", "{first}": 4, "{second}": 5, "{third}": 2}}'


def test_a_published_list_is_edited_once_judged_and_set_beside_the_published_rows(asked, refvie, monkeypatch):
    editor = Inverting()
    listed = load_listed(asked, f"refvie-bench={refvie}")
    assert edit_listed(asked, listed, silent(), load=lambda folder: editor)["made"] == 3
    assert edit_listed(asked, listed, silent(), load=lambda folder: editor)["made"] == 0
    assert editor.seen == ["edit 0", "edit 1", "edit 2"]
    with serving(lambda body: chat(mean_marks(body))) as server:
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
        scores, path = judge_listed(asked, listed)
    assert path.exists()
    assert scores["coverage"] == 1.0
    assert scores["criteria"]["identity_consistency"] == scores["criteria"]["temporal_consistency"] == 4.0
    assert scores["overall"] == pytest.approx(10 / 3, abs=1e-3)
    (ours,) = score_table(published_table("refvie-bench"), [("ours", scores)]).parts[1].rows
    assert ours == ("ours", "4.00", "4.00", "2.00", "4.00", "4.00", "2.00", "3.33", "3.33", "3")


def test_editing_a_list_tells_how_far_all_models_are(asked, refvie, tmp_path):
    (tmp_path / "former").mkdir()
    (tmp_path / "former" / "weights").write_text("champion")
    told = []
    edit_listed(
        asked, load_listed(asked, f"refvie-bench={refvie}"), silent(),
        ChampionRef("kiwi-edit-tiny", "3", tmp_path / "former"), load=lambda folder: Inverting(), batch=2,
        told=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(done, 6) for done in (0, 2, 3, 3, 5, 6)]


def test_clips_that_cannot_be_read_lower_coverage_and_are_named(asked, refvie, monkeypatch):
    (refvie / "videos" / "1.mp4").write_bytes(b"no video")
    (refvie / "2.png").unlink()
    editor = Inverting()
    listed = load_listed(asked, f"refvie-bench={refvie}")
    assert edit_listed(asked, listed, silent(), load=lambda folder: editor)["made"] == 1
    with serving(lambda body: chat(mean_marks(body))) as server:
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
        scores, _ = judge_listed(asked, listed)
    assert scores["coverage"] == pytest.approx(1 / 3, abs=1e-3)
    failures = [(failure["model"], failure["reason"]) for failure in scores["failures"]]
    assert failures == [(model, "source_unreadable") for model in ("reference", "copy_source") for _ in range(2)]


def test_changed_media_are_another_revision_and_their_edits_are_made_anew(asked, refvie):
    before = load_listed(asked, f"refvie-bench={refvie}")
    edit_listed(asked, before, silent(), load=lambda folder: Inverting())
    (refvie / "0.png").write_bytes((refvie / "1.png").read_bytes())
    after = load_listed(asked, f"refvie-bench={refvie}")
    assert before.revision != after.revision
    with pytest.raises(BenchmarkError, match="no edits"):
        judge_listed(asked, after)


def test_openve_bench_has_the_categories_of_its_table(asked, refvie):
    rows = "edited_type,prompt,original_video\n" + "".join(
        f"{kind},edit,videos/0.mp4\n"
        for kind in ("global_style", "background_change", "local_change", "local_remove", "local_add", "camera_edit")
    )
    (refvie / "benchmark_videos.csv").write_text(rows)
    listed = load_listed(asked, f"openve-bench={refvie}")
    columns = [column.name for column in published_table("openve-bench").columns]
    assert [sample.category for sample in listed.samples] == columns
    assert {sample.group for sample in listed.samples} == {"instruction"}
    assert [sample.rubric for sample in listed.samples].count("background") == 1


def test_wrong_use_is_one_clear_line(asked, configuration, refvie):
    for said in ("another=here", "refvie-bench", "refvie-bench=", "../x=list.yaml", "replies=list.yaml", "=list.csv"):
        with pytest.raises(UsageError, match="names no benchmark"):
            load_listed(asked, said)
    listed = load_listed(configuration, f"refvie-bench={refvie}")
    with pytest.raises(BenchmarkError, match="no ground truth"):
        judge_listed(configuration, listed)


def same_pictures(body) -> bool:
    """Whether every frame before is the frame after: the edit is a copy."""
    parts = body["messages"][0]["content"]
    shown = {
        parts[place]["text"]: parts[place + 1]["image_url"]["url"]
        for place in range(1, len(parts) - 1)
        if parts[place]["type"] == "text"
    }
    pairs = [(name, name.replace("before", "after")) for name in shown if "before" in name]
    return bool(pairs) and all(shown[before] == shown[after] for before, after in pairs)


def prefers_changes(body) -> str:
    first, second, third = body["response_format"]["json_schema"]["schema"]["required"][1:]
    mark = 1 if same_pictures(body) else 4
    return f'{{"reasoning": "", "{first}": {mark}, "{second}": {mark}, "{third}": {mark}}}'


def test_shards_make_each_edit_once_and_only_the_last_one_writes_the_list(asked, refvie):
    listed = load_listed(asked, f"refvie-bench={refvie}")
    editors = [Inverting(), Inverting()]
    first = edit_listed(asked, listed, silent(), load=lambda folder: editors[0], shard=Shard(0, 2))
    written = asked.workdir / first["edits"]
    assert (first["made"], first["left"], written.exists()) == (2, 1, False)
    with pytest.raises(BenchmarkError, match="not yet all"):
        judge_listed(asked, listed)
    second = edit_listed(asked, listed, silent(), load=lambda folder: editors[1], shard=Shard(1, 2))
    assert (second["made"], second["left"], written.exists()) == (1, 0, True)
    assert sorted(editors[0].seen + editors[1].seen) == ["edit 0", "edit 1", "edit 2"]
    with pytest.raises(UsageError, match="no shard 2 of 2"):
        Shard(2, 2)


def test_clips_are_edited_in_batches_and_a_killed_run_makes_only_what_is_missing(asked, refvie):
    listed = load_listed(asked, f"refvie-bench={refvie}")

    class Killed(Inverting):
        def __call__(self, videos, *rest, **more):
            if self.calls:
                raise KeyboardInterrupt
            return super().__call__(videos, *rest, **more)

    with pytest.raises(KeyboardInterrupt):
        edit_listed(asked, listed, silent(), load=lambda folder: Killed(), batch=2)
    editor = Inverting()
    assert edit_listed(asked, listed, silent(), load=lambda folder: editor, batch=2)["made"] == 1
    assert (editor.seen, editor.calls) == (["edit 2"], [1])


def edit_files(asked, done) -> list[Path]:
    return sorted((asked.workdir / done["edits"]).parent.glob("edits/*/*.safetensors"))


def test_an_edit_whose_file_was_cut_short_is_made_anew(asked, refvie):
    listed = load_listed(asked, f"refvie-bench={refvie}")
    done = edit_listed(asked, listed, silent(), load=lambda folder: Inverting())
    cut = edit_files(asked, done)[1]
    cut.write_bytes(cut.read_bytes()[:-10])
    editor = Inverting()
    edit_listed(asked, listed, silent(), load=lambda folder: editor)
    assert editor.seen == ["edit 1"]


def test_the_edits_are_kept_with_the_run_and_their_hashes_are_held_to(asked, refvie, monkeypatch):
    listed = load_listed(asked, f"refvie-bench={refvie}")
    with task_run(asked, "bench_run") as task:
        done = edit_listed(asked, listed, task, load=lambda folder: Inverting())
    (record,) = read_records(asked.workdir, attempt_of(asked))
    kept = {folder: Path(path) for path, folder in record.artifacts}
    edits = json.loads((kept["edits/refvie-bench"]).read_text())
    files = {entry["file"]: entry["sha256"] for entry in edits["models"][0]["files"]}
    folder = kept[f"edits/{edits['models'][0]['shards'].replace('/edits/', '/')}"]
    assert files == {path.name: sha256_of(path) for path in folder.glob("*.safetensors")}
    assert len(files) == 3
    paths = edit_files(asked, done)
    paths[0].write_bytes(paths[1].read_bytes())
    with serving(lambda body: chat(mean_marks(body))) as server:
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
        scores, _ = judge_listed(asked, listed)
    assert [failure["reason"] for failure in scores["failures"]] == ["edit_missing"]
    assert "SHA-256" in scores["failures"][0]["detail"]


def test_the_gate_decides_on_a_list_against_a_copy_of_the_source(asked, refvie, monkeypatch):
    chosen = {"listed": f"refvie-bench={refvie}"}
    asked = asked.model_copy(update={"benchmark": asked.benchmark.model_copy(update=chosen)})
    monkeypatch.setattr("kiwi.registry.contest.champion", lambda configuration: None)
    monkeypatch.setattr("kiwi.benchmark.listed_edits._loader", lambda configuration: lambda folder: Inverting())
    done = benchmark_with_champion(asked, silent())
    with serving(lambda body: chat(prefers_changes(body))) as server:
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
        scores = judge_edits(asked, silent())
    assert (scores["key"], scores["overall"]) == (done["key"], 4.0)
    assert scores["baselines"]["copy_source"]["overall"] == 1.0
    decision = decide_gate(scores, None, asked.gate)
    assert (decision.decision, decision.compared_with) == ("promote", "copy_source")
    for name in ("scores.json", "edits.json"):
        assert (asked.workdir / "benchmark" / name).exists()
    edits = json.loads((asked.workdir / "benchmark" / "edits.json").read_text())
    shown = [row for row in edits["samples"] if row["pick"]]
    assert {row["pick"] for row in shown if row["kind"] == "subject"} == {"best", "worst"}
    for row in shown:
        assert set(row["files"]) == {"source", "result", "reference"}
        assert all((asked.workdir / "benchmark" / path).exists() for path in row["files"].values())


def test_a_list_that_the_gate_decides_on_is_refused_before_editing_where_the_judge_needs_a_truth(
    configuration, refvie, monkeypatch
):
    chosen = configuration.benchmark.model_copy(update={"listed": f"refvie-bench={refvie}"})
    monkeypatch.setattr("kiwi.registry.contest.champion", lambda configuration: pytest.fail("asked too early"))
    with pytest.raises(BenchmarkError, match="no ground truth"):
        benchmark_with_champion(configuration.model_copy(update={"benchmark": chosen}), silent())


def test_the_champion_edits_the_same_list_and_its_record_counts_for_this_revision_and_judge_alone(
    asked, refvie, tmp_path, monkeypatch
):
    listed = load_listed(asked, f"refvie-bench={refvie}")
    former = tmp_path / "former"
    former.mkdir()
    (former / "weights").write_text("champion")

    class Copying(Inverting):
        def __call__(self, videos, *rest, **more):
            super().__call__(videos, *rest, **more)
            return videos

    def load(folder):
        return Copying() if folder == former else Inverting()

    stale = {"revision": "another", "judge": "mllm/2-other", "overall": 5.0}
    champion = ChampionRef("kiwi-edit-tiny", "3", former, stale)
    assert edit_listed(asked, listed, silent(), champion, load=load)["made"] == 6
    with serving(lambda body: chat(prefers_changes(body))) as server:
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
        scores, _ = judge_listed(asked, listed)
        assert scores["champion"]["scores_from"] == "this run"
        assert (scores["overall"], scores["champion"]["overall"]) == (4.0, 1.0)
        recorded = scores | {"overall": 2.5}
        again = edit_listed(asked, listed, silent(), ChampionRef("kiwi-edit-tiny", "4", former, recorded), load=load)
        assert again["made"] == 0
        scores, _ = judge_listed(asked, listed)
        assert (scores["champion"]["scores_from"], scores["champion"]["overall"]) == ("record", 2.5)
        assert [row["champion_overall"] for row in scores["per_sample"]] == [4.0, 4.0, 4.0]
    gone = ChampionRef("kiwi-edit-tiny", "5", tmp_path / "gone", stale)
    edit_listed(asked, listed, silent(), gone, load=load)
    edits = json.loads((asked.workdir / "benchmark" / "refvie-bench" / "edits.json").read_text())
    assert "cannot be had" in edits["champion"]["unmeasured"]


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml"])
def test_a_list_of_ones_own_bears_any_name(asked, refvie, name):
    published = load_listed(asked, f"refvie-bench={refvie}")
    (refvie / "refvie_bench.yaml").rename(refvie / name)
    mine = load_listed(asked, f"mine={refvie / name}")
    assert [each.entry for each in mine.samples] == [each.entry for each in published.samples]
    assert (mine.name, mine.revision != published.revision) == ("mine", True)


def test_a_list_of_unknown_types_alone_is_refused(asked, refvie):
    (refvie / "odd.csv").write_text("edited_type,prompt,original_video\ncamera_edit,turn,videos/0.mp4\n")
    with pytest.raises(UsageError, match="no entry that is rated"):
        load_listed(asked, f"odd={refvie / 'odd.csv'}")


def test_where_no_clip_can_be_read_nothing_runs(asked, refvie):
    for clip in (refvie / "videos").iterdir():
        clip.write_bytes(b"no video")
    listed = load_listed(asked, f"refvie-bench={refvie}")
    with pytest.raises(BenchmarkError, match="none of its clips can be read"):
        edit_listed(asked, listed, silent(), load=lambda folder: pytest.fail("a model was loaded"))


def test_a_store_that_is_away_is_no_fault_of_the_samples(asked, refvie, monkeypatch):
    listed = load_listed(asked, f"refvie-bench={refvie}")

    def away(root, entry):
        raise StorageError("the store is away", "later")

    monkeypatch.setattr("kiwi.benchmark.listed.open_entry", away)
    with pytest.raises(StorageError):
        load_listed(asked, f"refvie-bench={refvie}")
    with pytest.raises(StorageError):
        edit_listed(asked, listed, silent(), load=lambda folder: Inverting())


def test_a_configuration_whose_judge_cannot_judge_its_list_is_refused_at_once(tmp_path):
    overrides = ["benchmark.listed=refvie-bench=/somewhere"]
    with pytest.raises(UsageError, match="no ground truth"):
        configure("tiny", None, tmp_path, 0, overrides, None, 2)
    chosen = configure("tiny", None, tmp_path, 0, [*overrides, "benchmark.judge=mllm", "gate.floors={}"], None, 2)
    assert chosen.benchmark.listed == "refvie-bench=/somewhere"
    assert chosen.gate.floors == {}


def test_edits_of_a_list_can_be_shown_to_raters_until_the_list_changes(asked, refvie):
    listed = load_listed(asked, f"refvie-bench={refvie}")
    edit_listed(asked, listed, silent(), load=lambda folder: Inverting())
    (asked.workdir / "configuration.json").write_text(asked.canonical())
    found = read_edit_set(str(asked.workdir / "benchmark" / "refvie-bench"))
    assert [sample.prompt for sample in found.samples.values()] == ["edit 0", "edit 1", "edit 2"]
    opened = {name: read() for name, read in found.open(frozenset(found.samples), frozenset())}
    assert len(opened) == 3
    for each in opened.values():
        assert np.array_equal(each.edit.frames, 255 - each.source.frames)
        assert each.reference is not None
    (refvie / "0.png").write_bytes((refvie / "1.png").read_bytes())
    with pytest.raises(UsageError, match="its list is"):
        list(found.open(frozenset(found.samples), frozenset()))
