"""Task records on disk: what a task says is there for every reader, whatever becomes of the task."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.tracking import read_records, silent, task_run

Make = Callable[..., RunConfiguration]


def test_a_record_tells_all_that_a_task_said(make_configuration: Make, tmp_path: Path) -> None:
    configuration = make_configuration()
    with task_run(configuration, "train", shard=3) as task:
        task.params({"steps": 2})
        task.metrics({"loss": 1.5}, step=0)
        task.metrics({"loss": 0.5}, step=1)
        task.tags({"dataset.revision": "abc"})
        task.artifact(tmp_path / "x.txt", "plots")
        task.progress(2, 2, "steps", "done")
        task.note("reused")
    (record,) = read_records(configuration.workdir, "manual")
    assert (record.name, record.shard, record.status, record.tries) == ("train", 3, "finished", 1)
    assert record.params == {"steps": 2}
    assert record.tags == {"dataset.revision": "abc"}
    assert record.metrics == {"loss": 0.5}
    assert record.curves == {"loss": [(0, 1.5), (1, 0.5)]}
    assert record.progress == {"done": 2, "total": 2, "unit": "steps", "note": "done"}
    assert record.notes == ["reused"]
    assert record.artifacts == [(str(tmp_path / "x.txt"), "plots")]
    assert 0 <= record.seconds < 60


def test_a_failed_task_is_recorded_with_its_error_and_the_error_goes_on(make_configuration: Make) -> None:
    configuration = make_configuration()
    with pytest.raises(ValueError, match="no such frame"), task_run(configuration, "score"):
        raise ValueError("no such frame\nsecond line")
    (record,) = read_records(configuration.workdir, "manual")
    assert (record.status, record.error) == ("failed", "ValueError: no such frame")


def test_a_second_try_that_succeeds_is_finished_and_counted(make_configuration: Make) -> None:
    configuration = make_configuration()
    with pytest.raises(ValueError), task_run(configuration, "score"):
        raise ValueError("first")
    with task_run(configuration, "score"):
        pass
    (record,) = read_records(configuration.workdir, "manual")
    assert (record.status, record.error, record.tries) == ("finished", "", 2)


def test_a_killed_task_is_told_from_a_running_one(make_configuration: Make) -> None:
    configuration = make_configuration()
    body = (
        "import os, sys; from kiwi.configuration import RunConfiguration; from kiwi.tracking import task_run\n"
        "with task_run(RunConfiguration.parse(sys.argv[1]), 'ingest') as task:\n"
        "    task.note('at work'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", body, configuration.canonical()], check=False)
    with task_run(configuration, "score"):
        found = {record.name: record for record in read_records(configuration.workdir, "manual")}
    assert (found["ingest"].status, found["ingest"].notes) == ("killed", ["at work"])
    assert found["score"].status == "running"


def test_a_line_that_is_not_yet_whole_is_left_for_the_next_reading(make_configuration: Make) -> None:
    configuration = make_configuration()
    with task_run(configuration, "score") as task:
        path = configuration.workdir / "records" / "manual" / "score.jsonl"
        task.note("whole")
        with open(path, "a") as file:
            file.write('{"event": "note", "ti')
        assert read_records(configuration.workdir, "manual")[0].notes == ["whole"]


def test_progress_called_in_a_tight_loop_writes_little_and_ends_complete(make_configuration: Make) -> None:
    configuration = make_configuration()
    with task_run(configuration, "score") as task:
        for done in range(1, 5001):
            task.progress(done, 5000)
    path = configuration.workdir / "records" / "manual" / "score.jsonl"
    assert len(path.read_text().splitlines()) < 50
    assert read_records(configuration.workdir, "manual")[0].progress == {
        "done": 5000, "total": 5000, "unit": "rows", "note": "",
    }  # fmt: skip


def test_the_attempt_is_the_environments_then_the_workspaces(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = make_configuration()
    (configuration.workdir / "run.json").write_text('{"id": "from-file"}')
    with task_run(configuration, "a"):
        pass
    monkeypatch.setenv("KIWI_RUN_ID", "from-environment")
    with task_run(configuration, "b"):
        pass
    assert [record.name for record in read_records(configuration.workdir, "from-file")] == ["a"]
    assert [record.name for record in read_records(configuration.workdir, "from-environment")] == ["b"]


def test_only_rank_0_records(make_configuration: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = make_configuration()
    monkeypatch.setenv("RANK", "1")
    with task_run(configuration, "train") as task:
        task.note("unheard")
    assert read_records(configuration.workdir, "manual") == []


def test_a_run_id_that_leaves_its_folder_is_refused(make_configuration: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_RUN_ID", "../elsewhere")
    with pytest.raises(UsageError, match="cannot name a file"), task_run(make_configuration(), "score"):
        raise AssertionError("must not be reached")


def test_a_silent_task_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = silent()
    task.note("x")
    task.metrics({"a": 1.0})
    task.progress(1, 1)
    assert os.listdir(tmp_path) == []


def test_recording_imports_no_mlflow() -> None:
    body = "import sys, kiwi.tracking, kiwi.registry, kiwi.lineage; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", body], check=False).returncode == 0


def test_the_same_task_of_two_runs_is_done_by_one_at_a_time(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = make_configuration()
    monkeypatch.setenv("KIWI_RUN_ID", "first")
    program = (
        "import sys\nfrom kiwi.configuration import RunConfiguration\nfrom kiwi.tracking import task_run\n"
        "with task_run(RunConfiguration.parse(sys.argv[1]), 'train_stage1'): print('in', flush=True)\n"
    )
    with task_run(configuration, "train_stage1"):
        environment = {**os.environ, "KIWI_RUN_ID": "second", "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", program, configuration.canonical()]
        other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        while not any(record.notes for record in read_records(configuration.workdir, "second")):
            assert other.poll() is None, "it did not wait"
        with task_run(configuration, "score"):
            pass  # another task is not held up
    assert other.communicate(timeout=30)[0] == "in\n"
    (record,) = read_records(configuration.workdir, "second")
    assert record.notes == ["waits for the same task of another run in this work folder"]
    assert record.status == "finished"


def test_the_ranks_of_a_training_do_not_wait_for_the_task_that_started_them(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = make_configuration()
    with task_run(configuration, "train_stage1"):
        monkeypatch.setenv("RANK", "0")
        with task_run(configuration, "train_stage1"):
            pass
    (record,) = read_records(configuration.workdir, "manual")
    assert record.status == "finished"
