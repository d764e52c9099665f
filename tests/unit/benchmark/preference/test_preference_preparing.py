"""Making a study from folders and runs: what is compared, what is left out and why, and that it is made once."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from kiwi.benchmark.preference.edit_sets import read_edit_set
from kiwi.benchmark.preference.preparing import Plan, damage, open_study
from kiwi.benchmark.preference.signing import signer_of
from kiwi.benchmark.preference.study import load_study
from kiwi.errors import KiwiError, UsageError
from kiwi.media import decode, encode_video


def write_set(folder: Path, shade: int, ids: str = "abcd", *, sources: bool = True, prompt: str = "edit") -> str:
    """A folder with edits.csv: one small clip for each letter."""
    folder.mkdir()
    rows = []
    for place, name in enumerate(ids):
        frames = np.full((4, 48, 64, 3), shade, np.uint8)
        frames[:, :, place * 8 : place * 8 + 8] = 250
        encode_video(folder / f"{name}.mp4", frames, 8.0)
        row = {"id": name, "edit_video": f"{name}.mp4", "kind": f"k{place % 2}"}
        if sources:
            encode_video(folder / f"src-{name}.mp4", 255 - frames, 8.0)
            row |= {"src_video": f"src-{name}.mp4", "prompt": f"{prompt} {name}"}
        rows.append(row)
    write_rows(folder, rows)
    return str(folder)


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "edits.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "edit_video", "src_video", "prompt", "ref_image", "kind"])
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    return [write_set(tmp_path / "one", 30), write_set(tmp_path / "two", 200, sources=False)]


def test_a_study_holds_every_sample_that_all_sets_edited(sets: list[str], tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", [read_edit_set(each) for each in sets], Plan())
    assert study.sets == ("one", "two")
    assert sorted(sample.sample_id for sample in study.samples) == list("abcd")
    assert len(study.comparisons) == 4
    assert load_study(tmp_path / "study") == study
    for name in study.media:
        assert (tmp_path / "study" / "media" / name).is_file()
    sample = study.samples[0]
    shown = decode(tmp_path / "study" / "media" / sample.edits["two"].file)
    assert shown.frames.shape[1:3] == (sample.edits["two"].height, sample.edits["two"].width)
    assert abs(int(np.median(shown.frames)) - 200) < 8


def test_clips_names_do_not_depend_on_whose_they_are(tmp_path: Path) -> None:
    one, two = write_set(tmp_path / "one", 90), write_set(tmp_path / "two", 90)
    study = open_study(tmp_path / "study", [read_edit_set(one), read_edit_set(two)], Plan())
    assert all(sample.edits["one"] == sample.edits["two"] for sample in study.samples)


def test_the_same_edits_open_the_study_that_is_there(sets: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    made = open_study(folder, [read_edit_set(each) for each in sets], Plan())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert open_study(folder, [read_edit_set(each) for each in sets], Plan()) == made
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_edits_do_not_overwrite_a_study(sets: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    open_study(folder, [read_edit_set(each) for each in sets], Plan())
    os.utime(Path(sets[1]) / "a.mp4", ns=(1, 1))
    with pytest.raises(UsageError, match="another study"):
        open_study(folder, [read_edit_set(each) for each in sets], Plan())


def test_a_broken_edit_is_left_out_with_its_reason(sets: list[str], tmp_path: Path) -> None:
    (Path(sets[1]) / "b.mp4").write_bytes(b"no video at all, only words")
    (Path(sets[0]) / "c.mp4").unlink()
    study = open_study(tmp_path / "study", [read_edit_set(each) for each in sets], Plan())
    assert sorted(sample.sample_id for sample in study.samples) == ["a", "d"]
    reasons = {each["id"]: each["reason"] for each in study.excluded}
    assert reasons["b"].startswith("two: ")
    assert reasons["c"].startswith("one: edit_video 'c.mp4'")
    assert {check.sample_id for check in study.checks} <= {"a", "d"}


def test_a_listing_cannot_name_files_outside_its_folder(sets: list[str], tmp_path: Path) -> None:
    encode_video(tmp_path / "outside.mp4", np.zeros((4, 48, 64, 3), np.uint8), 8.0)
    rows = [{"id": "a", "edit_video": "../outside.mp4"}, {"id": "b", "edit_video": "b.mp4"}]
    write_rows(Path(sets[1]), rows)
    study = open_study(tmp_path / "study", [read_edit_set(each) for each in sets], Plan())
    assert [each["id"] for each in study.excluded] == ["a"]


def test_fewer_samples_are_spread_over_the_kinds(sets: list[str], tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", [read_edit_set(each) for each in sets], Plan(samples=2))
    assert {sample.kind for sample in study.samples} == {"k0", "k1"}


def test_a_check_shows_one_clip_twice_or_beside_a_damaged_copy(sets: list[str], tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", [read_edit_set(each) for each in sets], Plan(attention_share=0.2))
    assert {check.kind for check in study.checks} == {"same", "damaged"}
    for check in study.checks:
        assert (check.good == check.bad) == (check.kind == "same")
    assert not open_study(tmp_path / "bare", [read_edit_set(each) for each in sets], Plan(attention_share=0)).checks


def test_a_damaged_copy_is_far_from_its_clip_and_of_its_size() -> None:
    frames = np.tile(np.arange(60, dtype=np.uint8)[None, :, None, None] * 4, (3, 1, 90, 3))
    spoilt = damage(frames)
    assert spoilt.shape == frames.shape
    assert float(np.sqrt(((spoilt.astype(float) - frames) ** 2).mean())) > 50


def test_sets_that_cannot_be_compared_are_refused_with_the_reason(sets: list[str], tmp_path: Path) -> None:
    one = read_edit_set(sets[0])
    other = read_edit_set(write_set(tmp_path / "other", 90, "xy"))
    unlike = read_edit_set(write_set(tmp_path / "unlike", 90, prompt="something else"))
    mute = [read_edit_set(f"m{name}={sets[1]}") for name in "12"]
    for chosen, said in (
        ([one], "nothing to compare"),
        ([one, one], "one name"),
        ([one, other], "share no sample"),
        ([one, unlike], "different instructions"),
        (mute, "no instruction"),
    ):
        with pytest.raises(UsageError, match=said):
            open_study(tmp_path / "study", chosen, Plan())
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,video\na,b\n", "no column edit_video"),
        ("id,edit_video\n", "lists no edit"),
        ("id,edit_video\na,a.mp4\na,b.mp4\n", "occurs twice"),
        ("id,edit_video\n,a.mp4\n", "line 2"),
    ],
)
def test_a_wrong_listing_is_refused_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "edits.csv").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_edit_set(str(tmp_path))


def test_a_folder_that_is_no_set_of_edits_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder of edits at .*missing"):
        read_edit_set(str(tmp_path / "missing"))
    with pytest.raises(UsageError, match=r"neither edits\.csv nor"):
        read_edit_set(str(tmp_path))


def test_a_damaged_study_is_said_to_be_and_not_made_again(sets: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    open_study(folder, [read_edit_set(each) for each in sets], Plan())
    (folder / "study.json").write_text((folder / "study.json").read_text()[:-40])
    with pytest.raises(KiwiError, match="damaged"):
        load_study(folder)


def test_a_runs_edits_are_compared_with_those_of_an_earlier_stage(tmp_path: Path, configuration) -> None:  # type: ignore[no-untyped-def]
    from safetensors.numpy import save_file

    from kiwi.benchmark.run import batches_of, benchmark_folder
    from kiwi.benchmark.samples import load_held_out
    from kiwi.workspace import Workspace, write_json

    few = configuration.benchmark.model_copy(update={"samples_per_kind": 1})
    configuration = configuration.model_copy(update={"benchmark": few})
    held_out = load_held_out(configuration)
    models = [
        {"role": role, "name": name, "fingerprint": name, "controls": False, "at_most": None, "shards": f"edits/{name}"}
        for role, name in (("candidate", "stage2"), ("stage", "stage1"))
    ]
    for shift, model in enumerate(models):
        for batch in batches_of(configuration, held_out, model):
            batch.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({each.key: each.sample.truth // (1 + shift) for each in batch.requests}, str(batch.path))
    rows = [{"id": each.sample_id, "kind": each.kind, "prompt": each.prompt} for each in held_out.samples]
    said = {"revision": held_out.revision, "sampling_steps": 5, "models": models, "samples": rows}
    write_json(benchmark_folder(configuration) / "edits.json", said)
    Workspace.of(configuration).configuration.write_text(configuration.canonical())
    workdir = str(Workspace.of(configuration).root)
    study = open_study(tmp_path / "study", [read_edit_set(workdir), read_edit_set(f"early={workdir}@stage1")], Plan())
    assert study.sets == ("work:stage2", "early")
    assert len(study.samples) == len(held_out.samples)
    assert any(sample.reference for sample in study.samples)
    with pytest.raises(UsageError, match="no edits of 'stage9'"):
        read_edit_set(f"{workdir}@stage9")


def test_the_secret_is_its_owners_alone_and_stays_the_same(tmp_path: Path) -> None:
    one, again = signer_of(tmp_path), signer_of(tmp_path)
    assert one == again
    assert (tmp_path / "secret.json").stat().st_mode & 0o077 == 0
    assert signer_of(tmp_path, "a-token-of-my-own").key != one.key
    assert one.sign("a", "bc") != one.sign("ab", "c")
    assert one.sign("vote", "x") != one.sign("rater", "x")


@pytest.mark.parametrize("token", ["short", "with a space in it", "with/slash&and?more", "schlüssel-mit-umlaut"])
def test_a_token_that_is_weak_or_breaks_a_link_is_refused(token: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        signer_of(tmp_path, token)


def test_a_damaged_secret_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text(json.dumps({"secret": "zz"}))
    with pytest.raises(KiwiError, match=r"secret\.json"):
        signer_of(tmp_path)
