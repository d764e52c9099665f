"""Files and folders: decoded once, missing and damaged ones as typed results, and the command's exit codes."""

import json

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from kiwi.cli.metrics import metrics
from kiwi.errors import KiwiError, UsageError
from kiwi.media import encode_video
from kiwi.metrics import files as files_module
from kiwi.metrics.edit import METRICS
from kiwi.metrics.files import EditFiles, measure_files, measure_folders
from kiwi.metrics.results import Failure, Unmeasured

QUICK = ["psnr_outside", "psnr_target", "flicker"]


@pytest.fixture
def clips(tmp_path, source, target):
    """source.mp4, target.mp4 and mask.png, without loss."""
    encode_video(tmp_path / "source.mp4", source, 10, lossless=True)
    encode_video(tmp_path / "target.mp4", target, 10, lossless=True)
    mask = np.zeros(source.shape[1:3], np.uint8)
    mask[20:40, 30:50] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    return tmp_path


def files(folder, edit="target.mp4", **others):
    return EditFiles(folder / edit, folder / "source.mp4", **{key: folder / name for key, name in others.items()})


def test_each_file_is_decoded_once(clips, monkeypatch):
    decoded = []
    real = files_module.decode
    monkeypatch.setattr(files_module, "decode", lambda path: decoded.append(path.name) or real(path))
    report = measure_files(files(clips, target="target.mp4", mask="mask.png"))
    assert sorted(decoded) == ["mask.png", "source.mp4", "target.mp4", "target.mp4"], "the target is also the edit"
    assert report.shape == (6, 64, 80)
    assert report.seconds["decode"] > 0


def test_a_still_mask_holds_for_every_frame(clips):
    report = measure_files(files(clips, mask="mask.png"), only=["psnr_outside"])
    assert report.measured[0].value == 60, "outside the square nothing has changed"
    cv2.imwrite(str(clips / "small.png"), np.zeros((8, 8), np.uint8))
    (found,) = measure_files(files(clips, mask="small.png"), only=["psnr_outside"]).unmeasured
    assert found.reason is Failure.SIZE
    assert "the mask is 8x8, the edit 80x64" in found.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, Failure.MISSING), (b"", Failure.UNREADABLE), (b"no video" * 9, Failure.UNREADABLE), (800, "cut")],
)
def test_an_edit_that_is_missing_empty_foreign_or_truncated_is_a_typed_result(clips, content, reason):
    edit = clips / "edit.mp4"
    if content == 800:
        content, reason = (clips / "target.mp4").read_bytes()[:800], Failure.UNREADABLE
    if content is not None:
        edit.write_bytes(content)
    report = measure_files(files(clips, "edit.mp4", target="target.mp4", mask="mask.png"), only=QUICK)
    assert [each.reason for each in report.unmeasured] == [reason] * 3
    assert all("edit.mp4" in each.message for each in report.unmeasured)


@pytest.fixture
def folders(tmp_path, source, target):
    """Three sources; the edit of c is missing, and an edit may have another suffix than its source."""
    for name in "abc":
        encode_video(tmp_path / "sources" / f"{name}.mp4", source, 10, lossless=True)
        encode_video(tmp_path / "targets" / f"{name}.mp4", target, 10, lossless=True)
    for name, edit in (("a.mkv", target), ("b.mp4", source)):
        encode_video(tmp_path / "edits" / name, edit, 10, lossless=True)
    return EditFiles(tmp_path / "edits", tmp_path / "sources", tmp_path / "targets")


def test_a_folder_gives_every_edit_and_means_over_those_that_have_a_figure(folders):
    found = measure_folders(folders, only=["psnr_target"])
    assert list(found.edits) == ["a", "b", "c"]
    values = [found.edits[name].measured[0].value for name in "ab"]
    assert found.means()["psnr_target"]["value"] == pytest.approx(np.mean(values))
    assert found.means()["psnr_target"]["measured"] == 2
    assert found.edits["c"].unmeasured[0].reason is Failure.MISSING
    assert found.frechet is None


def test_an_edit_without_a_source_of_its_name_is_told_and_counts_against_the_coverage(folders, target):
    encode_video(folders.edit / "stray.mkv", target, 10, lossless=True)
    (folders.edit / "edits.csv").write_text("a list of edits is none")
    only = ["flicker", "warping_error_source_flow"]
    found = measure_folders(folders, only=only)
    assert (list(found.edits), found.without_source) == (["a", "b", "c", "stray"], ("stray",))
    (unmeasured,) = found.edits["stray"].unmeasured
    assert (unmeasured.name, unmeasured.reason) == ("warping_error_source_flow", Failure.MISSING)
    assert [found.means()[name]["measured"] for name in only] == [3, 2]
    assert found.as_dict()["without_source"] == ["stray"]
    assert (
        "without a source of their name, 1 of 4: stray" in run(folders.edit, folders.source, "--only", "flicker").output
    )


@pytest.mark.parametrize("columns", ["80", "60"])
def test_the_names_of_metrics_are_whole_in_a_narrow_terminal(folders, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    shown = run(folders.edit, folders.source).output
    assert "│ warping_error_source_flow │" in shown
    assert "│ warping_error_source_flow │" in run(folders.source / "a.mp4", folders.source / "a.mp4").output


def test_the_distance_of_the_sets_is_named_after_its_features_and_needs_every_clip(folders, clip):
    broken = measure_folders(folders, clip, only=["flicker"], frechet=clip).frechet
    assert isinstance(broken, Unmeasured)
    assert broken.name == "frechet_clip_features"
    assert broken.reason is Failure.MISSING
    assert broken.message.startswith("c: "), "a distance of the clips that happen to be there is another distance"
    (folders.source / "c.mp4").unlink()
    whole = measure_folders(folders, clip, only=["flicker"], frechet=clip).frechet
    assert whole.value > 0
    assert "2 features of edits, 2 of the ground truth" in whole.note


def test_weights_that_are_missing_are_told_once_for_all_edits_by_the_option_that_names_them(folders, tmp_path):
    done = run(folders.edit, folders.source, "--clip-model", tmp_path / "none", "--only", "flicker,clip_consistency")
    (line,) = [line for line in done.output.splitlines() if "there is no folder" in line]
    assert line.startswith("not measured (weights): clip_consistency: --clip-model: there is no folder")


def test_two_files_of_one_name_are_refused(folders):
    (folders.edit / "a.mp4").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"holds a\.mkv and a\.mp4"):
        measure_folders(folders)
    with pytest.raises(UsageError, match="is no folder"):
        measure_folders(EditFiles(folders.edit / "a.mkv", folders.source))


def run(*arguments):
    app = typer.Typer()
    app.command()(metrics)
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command_prints_a_table_and_why_the_rest_has_no_figure(clips):
    done = run(clips / "target.mp4", clips / "source.mp4", "--mask", clips / "mask.png")
    assert done.exit_code == 0, done.output
    assert "psnr_outside" in done.output
    assert "not measured (not_given): psnr_target, ssim_target, vmaf: no ground truth is given" in done.output
    assert "6 frames of 80x64" in done.output


def test_the_command_gives_json_with_every_metric(clips, saved_clip):
    done = run(
        clips / "target.mp4", clips / "source.mp4", "--target", clips / "target.mp4", "--reference", clips / "mask.png",
        "--prompt", "a red square", "--clip-model", saved_clip, "--json",
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert set(said["metrics"]) | set(said["unmeasured"]) == set(METRICS)
    assert set(METRICS) - set(said["metrics"]) <= {"vmaf"}
    assert len(said["metrics"]["psnr_target"]["per_frame"]) == 6


def test_the_command_fails_where_an_edit_has_no_figure(clips, folders):
    done = run(clips / "none.mp4", clips / "source.mp4", "--json")
    assert isinstance(done.exception, KiwiError)
    assert done.exception.exit_code == 1
    assert json.loads(done.stdout)["unmeasured"]["flicker"]["reason"] == "missing"
    many = run(folders.edit, folders.source, "--only", "flicker")
    assert "1 of 3 edits have no figure at all" in str(many.exception)
    assert "c, 1 not measured, missing: there is no file" in many.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["edits", "sources", "--prompt", "x"], "--prompt is of one edit"),
        (["edits/a.mkv", "sources", "--only", "flicker"], "one is a folder"),
        (["edits/a.mkv", "sources/a.mp4", "--frechet"], "--frechet compares sets"),
        (["edits/a.mkv", "sources/a.mp4", "--only", "lpips"], "no metric 'lpips'"),
    ],
)
def test_wrong_use_says_what_to_do(folders, monkeypatch, arguments, said):
    monkeypatch.chdir(folders.source.parent)
    done = run(*arguments)
    assert isinstance(done.exception, UsageError)
    assert said in done.exception.message
    assert done.exception.remedy
