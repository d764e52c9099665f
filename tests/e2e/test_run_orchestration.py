"""`kiwi run` as a program, with fake doors: order, failure, interruption, resumption, and what may share a folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FAKES = REPOSITORY / "tests" / "fixtures" / "fake_doors"


def command(workdir: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "kiwi", "run", "--workdir", str(workdir), *more]


def environment(fake: str = "") -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KIWI_", "MLFLOW_"))}
    return {**kept, "PYTHONPATH": f"{FAKES}{os.pathsep}{REPOSITORY}", "KIWI_FAKE": fake, "COLUMNS": "200"}


def kiwi_run(workdir: Path, *more: str, fake: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(workdir, *more), env=environment(fake), capture_output=True, text=True, timeout=120, cwd=workdir.parent
    )


def calls(workdir: Path) -> list[str]:
    return [line.split()[0] for line in (workdir / "fake-calls.txt").read_text().splitlines()]


def record(workdir: Path) -> dict:
    return json.loads((workdir / "run.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that went well: its work folder, its summary file, what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = kiwi_run(folder / "demo", "--summary", str(folder / "out" / "summary.json"), "--json", "--threads", "4")
    assert done.returncode == 0, done.stderr
    return folder / "demo", folder / "out" / "summary.json", done


def test_a_run_does_every_task_in_order(finished):
    workdir, _, _ = finished
    order = [name for name in dict.fromkeys(calls(workdir)) if not name.startswith("send")]
    assert " ".join(order) == (
        "plan_shards ingest score ground segment unique_crops synthesize verify deduplicate publish_dataset "
        "cache_latents train_stage1 train_stage2 train_stage3 run_benchmark judge register_model report decide promote"
    )
    assert calls(workdir)[-1] == "send-finished"


def test_a_run_leaves_its_summary_and_says_where_the_report_is(finished):
    workdir, summary, done = finished
    written = json.loads(summary.read_text())
    assert json.loads(done.stdout) == written
    assert set(written) >= {"run", "dataset", "stages", "benchmark", "model", "tracking_uri", "report"}
    assert [stage["name"] for stage in written["stages"]] == ["stage1", "stage2", "stage3"]
    assert record(workdir)["status"] == "finished"
    assert "index.html" in done.stderr
    assert not (workdir / "tmp").exists(), "no scratch is left"


def test_shards_share_the_threads_that_other_tasks_have_alone(finished):
    threads = dict(line.split() for line in (finished[0] / "fake-calls.txt").read_text().splitlines())
    assert (threads["score"], threads["train_stage1"]) == ("2", "4")


def test_a_hold_takes_the_other_branch(tmp_path):
    workdir = tmp_path / "demo"
    assert kiwi_run(workdir, fake="hold").returncode == 0
    assert "hold" in calls(workdir)
    assert "promote" not in calls(workdir)


def test_a_failing_task_is_named_with_its_reason_and_the_exit_task_still_runs(tmp_path):
    workdir = tmp_path / "demo"
    failed = kiwi_run(workdir, fake="fail:cache_latents")
    assert failed.returncode == 1
    assert "kiwi: cache_latents failed: the fake cache_latents was told to fail" in failed.stderr
    assert "tell it otherwise" in failed.stderr
    assert "kfp.log" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert calls(workdir).count("cache_latents") == 2, "it was tried again"
    assert "train_stage1" not in calls(workdir)
    assert "report" in calls(workdir)
    assert "send-failed" in calls(workdir)
    assert not (workdir / "summary.json").exists()
    assert record(workdir)["status"] == "failed"


def test_too_few_samples_show_the_funnel(tmp_path):
    failed = kiwi_run(tmp_path / "demo", fake="few:publish_dataset")
    assert failed.returncode == 1
    assert "2 quadruplets are fewer than 5" in failed.stderr
    assert "score 8 in, 2 kept, 6 rejected" in failed.stderr
    assert "lower curation.min_score" in failed.stderr


def test_a_task_that_is_killed_is_a_failure(tmp_path):
    failed = kiwi_run(tmp_path / "demo", fake="killed:plan_shards")
    assert failed.returncode == 1
    assert "plan_shards failed: its process was killed" in failed.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process_and_the_next_one_resumes(tmp_path, signum):
    workdir = tmp_path / "demo"
    process = subprocess.Popen(
        command(workdir), env=environment("sleep:ingest"), stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    until = time.monotonic() + 60
    while "ingest" not in (calls(workdir) if (workdir / "fake-calls.txt").exists() else []):
        assert time.monotonic() < until, "the run never got to work"
        time.sleep(0.1)
    time.sleep(0.5)
    assert members(workdir), "the run has processes while it works"
    process.send_signal(signum)
    _, said = process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if signum == signal.SIGKILL else 130), said
    until = time.monotonic() + 10
    while members(workdir) and time.monotonic() < until:
        time.sleep(0.1)
    assert not members(workdir), "every child is gone"
    if signum != signal.SIGKILL:
        assert "report" in calls(workdir), "what there is so far is drawn"
        left = json.loads((workdir / "summary.json").read_text())
        assert left["run"]["status"] == record(workdir)["status"] == "interrupted"
        assert left["run"]["broke_off"]["task"].startswith("ingest")
        assert left["model"] is None
    if signum != signal.SIGTERM:
        resumed = kiwi_run(workdir)
        assert resumed.returncode == 0, resumed.stderr
        assert "Resuming" in resumed.stderr
        assert record(workdir)["attempts"][-1]["status"] == "finished"


def members(workdir: Path) -> list[str]:
    """Processes whose environment names an attempt of this folder: every child of the run inherits it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={workdir}".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().decode()[:80])
    return found


def test_a_finished_run_runs_again_unless_its_settings_changed(finished):
    workdir, _, _ = finished
    other = kiwi_run(workdir, "--seed", "7")
    assert other.returncode == 2
    assert "holds another run" in other.stderr
    assert "seed: 0, now 7" in other.stderr
    again = kiwi_run(workdir)
    assert again.returncode == 0, again.stderr
    assert "Another attempt" in again.stderr
    assert len(record(workdir)["attempts"]) == 2


def test_two_runs_cannot_share_a_work_folder(tmp_path):
    workdir = tmp_path / "demo"
    first = subprocess.Popen(command(workdir), env=environment("sleep:plan_shards"), stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while not (workdir / "run.json").exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        second = kiwi_run(workdir)
        assert second.returncode == 2
        assert f"another run is at work in {workdir} (process {first.pid})" in second.stderr
    finally:
        first.terminate()
        first.wait(timeout=30)
