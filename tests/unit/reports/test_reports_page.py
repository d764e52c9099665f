"""Claims about the report: complete, self-contained, escaped, and never stopped by what is missing."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kiwi.configuration import GateSettings, SourceSettings
from kiwi.presets import build
from kiwi.reports import ONE_FILE, write_report
from kiwi.tracking import silent
from kiwi.workspace import read_json, write_json

Make = Callable[..., Any]


class Links(HTMLParser):
    """Every address that a page names, and its visible words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self._hidden = False
        self.feed(text)
        self.words = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag in ("style", "script")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "poster")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.words += "" if self._hidden else data


def read(path: Path) -> Links:
    return Links(path.read_text(encoding="utf-8"))


def change(path: Path, **values: Any) -> None:
    """Sets values of a JSON file; a function is given the old value."""
    said = read_json(path)
    said |= {name: value(said[name]) if callable(value) else value for name, value in values.items()}
    write_json(path, said)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, made_up: Make, _whole_workspace: Path) -> tuple[Any, Path]:
    root = tmp_path_factory.mktemp("complete") / "workspace"
    shutil.copytree(_whole_workspace, root)
    run = made_up(root)
    return run, write_report(run.configuration, silent())


def test_the_report_of_a_complete_run_shows_every_section(complete: tuple[Any, Path]) -> None:
    page = read(complete[1])
    for said in (
        "Promoted", "version 2 is the champion", "leads champion version 1", "refvie/v1", "Identity consistency",
        "Background reference", "3,000 image pair", "Stage 3", "publish dataset", "5b0f0c7d1e2a4f6b8c9d0e1f2a3b4c5d",
        "kiwi run --preset tiny", "random initial weights", "deterministic: six criteria",
    ):  # fmt: skip
        assert said.lower() in page.words.lower(), said
    assert "Not reached" not in page.words


def test_everything_the_report_shows_lies_beside_it_and_nothing_comes_from_a_network(
    complete: tuple[Any, Path], tmp_path: Path
) -> None:
    moved = shutil.copytree(complete[1].parent, tmp_path / "elsewhere")
    for name in ("index.html", "dataset.html"):
        text = (moved / name).read_text()
        page = Links(text)
        assert page.addresses
        for address in page.addresses:
            assert address.startswith("#") or (moved / address).is_file(), address
        assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)[a-z]", re.sub(r"postgresql://\S*", "", text))
    assert len(list((moved / "media").glob("*.mp4"))) > 50


def test_the_clips_are_ones_that_browsers_play(complete: tuple[Any, Path]) -> None:
    import av

    for path in sorted((complete[1].parent / "media").glob("*.mp4"))[::7]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p"), path.name


def test_the_gallery_shows_best_median_and_worst_of_every_kind(complete: tuple[Any, Path]) -> None:
    text = complete[1].read_text()
    gallery = text[text.index('id="gallery"') : text.index("Given something else")]
    assert gallery.count("inside the edit, copy") == 6
    for rank in ("best", "median", "worst"):
        assert gallery.count(f"r-{rank}") == 6


def test_the_funnel_of_the_page_reconciles_and_says_so(complete: tuple[Any, Path]) -> None:
    assert "rows in = kept + rejected + failed" in read(complete[1]).words


def test_a_funnel_that_does_not_add_up_is_called_out(whole_run: Make) -> None:
    run = whole_run()
    path = run.root / "data" / "dataset" / "manifest.json"
    manifest = read_json(path)
    manifest["funnel"][1]["kept"] += 1
    write_json(path, manifest)
    assert "do not add up" in read(write_report(run.configuration, silent())).words


def test_a_workspace_in_which_nothing_ran_gives_a_report_that_says_so(made_up_run: Make) -> None:
    page = read(write_report(made_up_run().configuration, silent()))
    assert "Nothing ran yet" in page.words
    assert page.words.count("Not reached") >= 6


PARTS = {
    "tasks": ["records"], "training": ["training"], "dataset": ["data", "dataset.json"], "benchmark": ["benchmark"],
    "decision": ["decision.json", "model.json"],
}  # fmt: skip


@pytest.mark.parametrize("missing", PARTS)
def test_any_part_may_be_missing(whole_run: Make, missing: str) -> None:
    run = whole_run()
    for name in PARTS[missing]:
        path = run.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = read(write_report(run.configuration, silent()))
    assert ("Not reached" in page.words) == (missing != "decision")
    assert "cannot be" not in page.words


def test_a_failed_run_says_what_failed_and_the_remedy(made_up_run: Make) -> None:
    run = made_up_run()
    run.task("ingest", 0, 5, shard=0)
    run.task("publish_dataset", 6, 2, error="TooFewSamples: 3 training pairs are left, 4 are needed")
    page = read(write_report(run.configuration, silent()))
    assert "The run stopped at publish dataset" in page.words
    assert "3 training pairs are left, 4 are needed" in page.words
    assert "give the same command again" in page.words


def test_a_run_that_failed_without_a_word_is_not_called_under_way(made_up_run: Make) -> None:
    run = made_up_run()
    run.task("ingest", 0, 5)
    run.task("finish", 6, 1)
    path = next((run.root / "records").glob("*/finish.jsonl"))
    state = json.dumps({"event": "params", "time": 1.0, "params": {"state": "FAILED"}})
    path.write_text(path.read_text().replace("\n", f"\n{state}\n", 1))
    assert "Failed" in read(write_report(run.configuration, silent())).words


def test_a_run_that_was_stopped_by_hand_is_called_interrupted_and_names_no_failure(made_up_run: Make) -> None:
    run = made_up_run()
    run.task("ingest", 0, 5)
    record = next((run.root / "records").glob("*/ingest.jsonl"))
    start = {"event": "start", "time": run.clock, "name": "score", "shard": None, "pid": 0, "host": "elsewhere"}
    record.with_name("score.jsonl").write_text(json.dumps(start) + "\n")
    change(run.root / "run.json", status="interrupted")
    page = read(write_report(run.configuration, silent()))
    assert "Interrupted" in page.words
    assert "The run was stopped at score" in page.words
    assert "The same command goes on" in page.words
    assert "out of memory" not in page.words


def test_a_training_that_ended_because_the_run_was_stopped_is_no_failure_and_says_how_far_it_was(
    made_up_run: Make,
) -> None:
    run = made_up_run()
    run.task("train_stage1", 0, 5, progress=(120, "steps"), error="Preempted: the state was saved at step 120")
    record = next((run.root / "records").glob("*/train_stage1.jsonl"))
    record.write_text(record.read_text().replace('"total": 120', '"total": 600'))
    change(run.root / "run.json", status="interrupted", finished=run.clock + 4.9)
    page = read(write_report(run.configuration, silent()))
    assert "The run was stopped at train stage 1" in page.words
    assert "120 of 600 steps were done" in page.words
    assert "the state was saved" not in page.words
    change(run.root / "run.json", finished=run.clock + 60)
    assert "the state was saved" in read(write_report(run.configuration, silent())).words, "it had failed before"


def test_a_run_that_was_stopped_between_two_tasks_says_after_which(made_up_run: Make) -> None:
    run = made_up_run()
    change(run.root / "run.json", status="interrupted")
    assert "stopped before any task began" in read(write_report(run.configuration, silent())).words
    run.task("publish_dataset", 0, 5)
    assert "stopped after publish dataset" in read(write_report(run.configuration, silent())).words


def test_a_held_candidate_is_shown_with_the_reason(whole_run: Make) -> None:
    page = read(write_report(whole_run("hold").configuration, silent()))
    assert "stays a challenger" in page.words
    assert "accuracy, recolour of 0.62 is below the floor of 0.8" in page.words
    assert "✕" in page.words


def test_what_users_wrote_is_escaped(whole_run: Make) -> None:
    attack = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    source = SourceSettings(kind="pairs", pairs=attack)
    gate = GateSettings(approvals=1, approvers=(attack,))
    run = whole_run(model_name=attack, source=source, gate=gate)
    change(
        run.root / "benchmark" / "edits.json",
        samples=lambda old: [{**each, "prompt": attack, "kind": attack} for each in old],
    )
    failure = {"id": attack, "reason": attack, "detail": attack}
    change(run.root / "benchmark" / "scores.json", judge=attack, revision=attack, failures=[failure])
    change(run.root / "decision.json", reasons=[attack], champion={"version": attack, "overall": 3.0})
    change(run.root / "dataset.json", version=attack)
    run.task("judge", 0, 1, error=f"KiwiError: {attack}")
    path = write_report(run.configuration, silent())
    for name in ("index.html", ONE_FILE, "dataset.html"):
        page = read(path.with_name(name))
        assert page.tags.count("script") == 1, name
        assert "x" not in page.addresses, name
        assert attack in page.words, name


def test_media_outside_the_benchmarks_folder_are_not_copied(whole_run: Make) -> None:
    run = whole_run()
    (run.root / "secret.png").write_bytes(b"not to be shown")
    edits = read_json(run.root / "benchmark" / "edits.json")
    for sample in edits["samples"]:
        sample["files"]["reference"] = "../secret.png"
    write_json(run.root / "benchmark" / "edits.json", edits)
    path = write_report(run.configuration, silent())
    assert all(file.read_bytes() != b"not to be shown" for file in path.parent.glob("media/*"))


def test_the_password_of_a_tracking_address_is_not_shown(complete: tuple[Any, Path]) -> None:
    assert "secret-word" not in complete[1].read_text()


def test_writing_twice_changes_nothing_but_the_page_and_leaves_no_stale_media(whole_run: Make) -> None:
    run = whole_run()
    path = write_report(run.configuration, silent())
    before = {file.name: file.read_bytes() for file in (path.parent / "media").iterdir()}
    (path.parent / "media" / "of-an-earlier-run.mp4").write_bytes(b"stale")
    write_report(run.configuration, silent())
    assert {file.name: file.read_bytes() for file in (path.parent / "media").iterdir()} == before


@pytest.mark.parametrize(
    ("name", "content"),
    [("benchmark/scores.json", "{ cut sh"), ("benchmark/edits.json", "[1, 2]"), ("decision.json", "{ cut sh"),
     ("dataset.json", "[1, 2]"), ("run.json", "{ cut sh"), ("model.json", "null")],
)  # fmt: skip
def test_a_broken_file_is_named_and_the_rest_is_shown(whole_run: Make, name: str, content: str) -> None:
    run = whole_run()
    (run.root / name).write_text(content)
    page = read(write_report(run.configuration, silent()))
    assert f"{Path(name).name} cannot be read" in page.words
    assert "steps" in page.words


def test_a_video_that_cannot_be_decoded_does_not_stop_the_report(whole_run: Make) -> None:
    run = whole_run()
    for path in (run.root / "benchmark").rglob("result.mp4"):
        path.write_bytes(b"cut")
    assert write_report(run.configuration, silent()).exists()


def test_a_dataset_that_cannot_be_read_is_named(whole_run: Make) -> None:
    run = whole_run()
    next((run.root / "data" / "dataset" / "rows").glob("*.parquet")).write_bytes(b"cut")
    assert "the dataset cannot be shown" in read(write_report(run.configuration, silent())).words


def test_the_dataset_page_shows_what_was_kept_and_why_others_were_not(complete: tuple[Any, Path]) -> None:
    page = read(complete[1].parent / "dataset.html")
    for said in ("Quadruplets", "Turned away", "mask degenerate", "Verify consistency", "the file ends after 12 bytes"):
        assert said.lower() in page.words.lower(), said


DAMAGED = {
    "scores of another shape": ("benchmark/scores.json", {"criteria": [1, 2], "per_kind": "none", "per_sample": [3]}),
    "edits of another shape": ("benchmark/edits.json", {"samples": ["one", {"files": "none"}]}),
    "checks of another shape": ("decision.json", {"checks": ["one", {"name": None}], "champion": "first"}),
    "a manifest of another shape": ("data/dataset/manifest.json", {"funnel": ["one"]}),
    "losses of another shape": ("training/stage2.json", {"losses": [1, "two"]}),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_record_of_another_shape_costs_its_own_part_of_the_page_alone(whole_run: Make, what: str) -> None:
    run = whole_run()
    name, values = DAMAGED[what]
    change(run.root / name, **values)
    page = read(write_report(run.configuration, silent()))
    assert "publish dataset" in page.words.lower()
    assert "Do it again" in page.words


def test_a_damaged_task_record_is_named_and_the_other_tasks_are_shown(whole_run: Make) -> None:
    run = whole_run()
    next((run.root / "records").glob("*/judge.jsonl")).write_text('{"event": "start", "ti\n{"event": 5}\n')
    page = read(write_report(run.configuration, silent()))
    assert "the task record judge.jsonl cannot be read" in page.words
    assert "publish dataset" in page.words.lower()


def test_the_one_file_holds_its_media_and_names_no_other_file(complete: tuple[Any, Path]) -> None:
    text = complete[1].with_name(ONE_FILE).read_text()
    page = Links(text)
    outside = [each for each in page.addresses if not each.startswith(("#", "data:"))]
    assert outside == []
    assert sum(each.startswith("data:video/mp4;base64,") for each in page.addresses) >= 3 * 6 * 3
    assert "Not reached" not in page.words
    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)[a-z]", re.sub(r"postgresql://\S*|base64,[^\"]*", "", text))


def test_the_one_file_stays_within_its_bound_and_says_what_it_leaves_out(
    whole_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiwi.reports.page.ONE_FILE_MEDIA", 60_000)
    run = whole_run()
    path = write_report(run.configuration, silent()).with_name(ONE_FILE)
    media = sum(len(each) for each in read(path).addresses if each.startswith("data:"))
    assert 0 < media <= 60_000 * 4 / 3 + 10_000
    assert re.search(r"[1-9]\d* clips were left out to keep it small", read(path).words)


def test_intervals_stand_beside_every_score_and_the_lead_over_the_champion(complete: tuple[Any, Path]) -> None:
    page = read(complete[1])
    for said in (
        "95% interval 3.17 to 3.29", "champion version 1", "+0.143 to +0.223", "99.9%", "3.50–3.74", "+0.13 to +0.29",
    ):  # fmt: skip
        assert said in page.words, said


def test_scores_of_the_measured_judge_stand_beside_no_published_row(whole_run: Make) -> None:
    run = whole_run()
    measured = listed_scores("measured/1")
    write_json(run.root / "benchmark" / "refvie-bench" / "scores.json", measured)
    page = read(write_report(run.configuration, silent()))
    assert "Runway Aleph" not in page.words
    assert "never stand beside those of a multimodal model" in page.words
    assert "OpenVE-Bench was not run on this model" in page.words


def test_a_multimodal_judges_scores_stand_under_the_published_rows_in_a_part_of_their_own(whole_run: Make) -> None:
    run = whole_run()
    judged = listed_scores("mllm/1-SomeModel-abc")
    write_json(run.root / "benchmark" / "refvie-bench" / "scores.json", judged)
    page = read(write_report(run.configuration, silent()))
    published, ours = page.words.index("Runway Aleph"), page.words.index("judge mllm/1-SomeModel-abc")
    assert published < ours
    assert "not to be ranked against" in page.words
    assert "95% interval 2.90 to 3.10" in page.words


def test_a_run_judged_on_a_list_shows_marks_and_claims_no_measurement(whole_run: Make) -> None:
    run = whole_run("promote")
    folder = run.root / "benchmark"
    told = ("psnr_full", "psnr_edit", "copy_psnr_full", "copy_psnr_edit")
    edits = read_json(folder / "edits.json")
    for place, sample in enumerate(edits["samples"]):
        for name in told:
            sample.pop(name)
        sample["overall"] = 2.0 + place % 3
    write_json(folder / "edits.json", edits)
    kinds = {"recolour": {"samples": 4, "overall": 3.25}, "remove": {"samples": 4, "overall": 2.5}}
    change(folder / "scores.json", benchmark="mine", judge="mllm/2-m-1", per_kind=kinds, stages={}, controls={})
    page = read(write_report(run.configuration, silent()))
    assert "samples of mine" in page.words
    assert "held-out" not in page.words
    assert "by the judge's mark" in page.words
    assert re.search(r"Recolour\s*4\s*3\.25", page.words, re.I)
    assert "4.00 of 5" in page.words
    assert not re.search(r"\d dB", page.words.split("Gallery")[-1].split("Dataset")[0]), "a mark is no gain in dB"
    assert "this run was judged by mllm/2-m-1 on mine" in page.words
    assert "Not compared." in page.words


def listed_scores(judge: str) -> dict[str, Any]:
    """Made-up scores of RefVIE-Bench."""
    subject = {"identity_consistency": 3.2, "temporal_consistency": 3.0, "physical_consistency": 2.8}
    background = {"reference_similarity": 3.2, "matting_quality": 3.0, "video_quality": 2.8}
    rows = [
        {"id": str(place), "group": group, "category": "subject_reference", "criteria": criteria}
        for place, (group, criteria) in enumerate([("subject", subject), ("background", background)] * 4)
    ]
    return {"benchmark": "refvie-bench", "judge": judge, "revision": "b1", "overall": 3.0, "samples": 8,
            "coverage": 1.0, "intervals": {"overall": [2.9, 3.1], "criteria": {}}, "per_sample": rows}  # fmt: skip


def test_a_judge_that_covered_too_little_is_shown_with_the_reasons_of_its_failures(whole_run: Make) -> None:
    run = whole_run("hold")
    failures = [{"id": f"s{place}", "reason": "reply_invalid", "detail": "no JSON in 'five'"} for place in range(7)]
    values = {"coverage": 0.03, "overall": None, "criteria": {}, "intervals": None, "failures": failures}
    change(run.root / "benchmark" / "scores.json", **values)
    page = read(write_report(run.configuration, silent()))
    assert "3% of them judged" in page.words
    assert "7 reply invalid" in page.words
    assert "no JSON in 'five'" in page.words


def test_a_champion_that_could_not_be_measured_is_said_and_not_left_blank(whole_run: Make) -> None:
    run = whole_run("hold")
    gone = {"name": "kiwi-edit-tiny", "version": "1", "unmeasured": "its files are gone", "overall": None}
    change(run.root / "benchmark" / "scores.json", champion=gone | {"criteria": {}, "comparison": None})
    page = read(write_report(run.configuration, silent()))
    assert "Champion version 1 has no figures here: its files are gone" in page.words


def test_a_model_that_waits_for_approvals_is_not_called_promoted(whole_run: Make) -> None:
    run = whole_run("promote", gate=GateSettings(approvals=2, approvers=("Ada", "Grace", "Linus")))
    waits = {"for": "approvals", "why": "kiwi-edit-tiny version 2 has 1 of 2 approvals (Ada)"}
    change(run.root / "model.json", aliases=["challenger"], waits=waits)
    page = read(write_report(run.configuration, silent()))
    assert "Waits for approvals" in page.words
    assert "Promoted" not in page.words
    assert "1 of 2 approvals (Ada)" in page.words
    assert f"kiwi model approve 2 --as NAME --workdir {run.root}" in page.words
    assert f"kiwi model promote 2 --workdir {run.root}" in page.words


def test_a_promotion_that_failed_is_not_called_promoted(whole_run: Make) -> None:
    run = whole_run()
    change(run.root / "model.json", aliases=["challenger"])
    run.task("promote", 400, 1, error="Locked: the registry is locked by another change")
    page = read(write_report(run.configuration, silent()))
    assert "The run stopped at promote" in page.words
    assert "the registry is locked" in page.words


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("https://anna:secret-word@mlflow.example/base", "https://mlflow.example/base/#/runs/5b0f0c7d1e2a4f6b8c9d0e1f2a3b4c5d"),
        ("javascript:alert(1)//", ""),
        ("sqlite:///mlflow.db", ""),
    ],
)  # fmt: skip
def test_only_a_tracking_server_is_linked_and_never_with_a_password(whole_run: Make, uri: str, link: str) -> None:
    path = write_report(whole_run(tracking_uri=uri).configuration, silent())
    page = read(path)
    assert [each for each in page.addresses if "#/runs/" in each or "javascript" in each] == ([link] if link else [])
    assert "secret-word" not in path.read_text()


def test_the_command_does_the_very_run_again(whole_run: Make) -> None:
    from kiwi.reports.command import run_command

    run = whole_run(seed=3)
    words = shlex.split(run_command(run.configuration))
    overrides = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    again = build("tiny", workspace=run.root, tracking_uri=run.configuration.tracking_uri, seed=3, overrides=overrides)
    assert again == run.configuration
    assert f"--workdir {run.root}" in shlex.join(words)
