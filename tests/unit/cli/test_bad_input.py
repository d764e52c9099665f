"""Wrong use of `kiwi run` and its neighbours: exit code 2, one clear line with the remedy, and nothing started."""

import contextlib
import io
import os
import resource
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from kiwi.cli import main

REPOSITORY = Path(__file__).resolve().parents[3]
HEADER = "src_video,tgt_video,prompt\n"


def environment(image: str = "") -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KIWI_", "MLFLOW_"))}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "KIWI_IMAGE": image}


def kiwi(*arguments: str, cwd: Path, image: str = "") -> subprocess.CompletedProcess[str]:
    """By the program's own entry, in this process: interpreters that only start and refuse take most of the time."""
    out, said, code = io.StringIO(), io.StringIO(), 0
    with (
        patch.dict(os.environ, environment(image), clear=True),
        patch.object(sys, "argv", ["kiwi", *arguments]),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), said.getvalue())


def kiwi_apart(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The program as a person starts it."""
    command = [sys.executable, "-m", "kiwi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=60)


def check_refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 2, done.stderr
    for text in said:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, "one line, and one with the remedy"


def test_an_unknown_preset_lists_the_known_ones(tmp_path):
    check_refused(kiwi_apart("run", "--preset", "huge", cwd=tmp_path), "no preset 'huge'", "presets: tiny")
    assert not (tmp_path / "runs").exists()


def test_a_backend_that_is_not_there_says_so(tmp_path):
    check_refused(kiwi("run", "--backend", "x", cwd=tmp_path), "no backend 'x'", "local, docker, kfp")
    assert not (tmp_path / "runs").exists()


def test_a_run_on_a_cluster_without_paths_that_pods_see_is_refused(tmp_path):
    check_refused(kiwi("run", "--backend", "kfp", cwd=tmp_path), "--workdir /work/NAME", "--tracking-uri")
    assert not (tmp_path / "runs").exists()


def test_a_run_on_a_cluster_that_is_not_named_is_refused(tmp_path):
    where = ("--workdir", "/work/demo", "--tracking-uri", "http://mlflow.kiwi.svc:5000")
    check_refused(kiwi("run", "--backend", "kfp", *where, cwd=tmp_path), "KIWI_KFP_HOST")


def test_an_image_that_can_move_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no engine that could know its digest
    done = kiwi("run", "--backend", "docker", cwd=tmp_path, image="kiwi-cpu:latest")
    check_refused(done, "kiwi-cpu:latest", "can move")
    assert not (tmp_path / "runs" / "demo" / "run.json").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("curation.min_scoer=5", "no setting 'min_scoer'"),
        ("curation.min_score", "is not KEY=VALUE"),
        ("curation.min_score=eleven", "curation.min_score"),
        ("curation.min_score=11", "curation.min_score"),
        ("stages.stage9.steps=1", "no item 'stage9'"),
    ],
)
def test_a_wrong_override_names_the_setting(tmp_path, override, said):
    check_refused(kiwi("run", "--set", override, cwd=tmp_path), said)


def test_a_missing_folder_of_pairs(tmp_path):
    check_refused(kiwi("run", "--pairs", "nowhere", cwd=tmp_path), "nowhere", "--pairs")


def test_a_folder_without_a_list(tmp_path):
    (tmp_path / "clips").mkdir()
    check_refused(kiwi("run", "--pairs", "clips", cwd=tmp_path), "pairs.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "empty"), (HEADER, "no rows"), ("a,b\n1,2\n", "src_video"), ("src_video,prompt\na,b\n", "tgt_video")],
    ids=["empty", "header-only", "other-columns", "one-missing"],
)
def test_a_list_without_pairs_or_columns(tmp_path, text, said):
    (tmp_path / "pairs.csv").write_text(text)
    check_refused(kiwi("run", "--pairs", "pairs.csv", cwd=tmp_path), said)
    assert not (tmp_path / "runs").exists()


def test_a_work_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    check_refused(kiwi("run", "--workdir", "file", cwd=tmp_path), "is a file", "--workdir")
    check_refused(kiwi("run", "--workdir", "file/below", cwd=tmp_path), "not writable", "--workdir")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_work_folder_that_is_not_writable(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    check_refused(kiwi("run", "--workdir", "locked/run", cwd=tmp_path), "not writable", "--workdir")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    check_refused(kiwi("run", "--workdir", "photos", cwd=tmp_path), "holds no run (cat.jpg)", "--workdir")


def test_a_summary_that_could_not_be_written_is_refused_at_once(tmp_path):
    check_refused(kiwi("run", "--summary", ".", cwd=tmp_path), "is a folder")
    (tmp_path / "file").write_text("")
    check_refused(kiwi("run", "--summary", "file/summary.json", cwd=tmp_path), "cannot be written")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "card"),
        ("data", "funnel"),
        ("bench", "table"),
        ("model", "list"),
        ("runs",),
        ("train", "stage1"),
        ("data", "verify", "nowhere"),
        ("edit", "nowhere.mp4", "--prompt", "x", "--out", "y.mp4"),
    ],
    ids=" ".join,
)
def test_commands_about_a_run_that_is_not_there(tmp_path, arguments):
    check_refused(kiwi(*arguments, cwd=tmp_path))


def test_an_unknown_option_is_wrong_use(tmp_path):
    assert kiwi("run", "--wrokdir", "x", cwd=tmp_path).returncode == 2


def test_debug_shows_the_traceback(tmp_path):
    assert "Traceback" in kiwi_apart("run", "--preset", "huge", "--debug", cwd=tmp_path).stderr


def test_help_is_quick_and_imports_nothing_heavy(tmp_path):
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert kiwi_apart("--help", cwd=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.5, "seconds of a processor, which other work on the machine does not lengthen"
    seen = "import sys, kiwi.cli; print([m for m in sys.modules if m in " + repr(HEAVY) + "])"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]", done.stderr


HEAVY = ["torch", "numpy", "polars", "cv2", "mlflow", "dvc", "kfp", "pydantic", "rich.live", "transformers"]


def test_a_folder_without_versions_says_so(tmp_path):
    done = kiwi("data", "list", "--workdir", "empty", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == ""
    assert "no version was published in empty" in done.stderr
