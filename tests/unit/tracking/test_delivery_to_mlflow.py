"""Records become MLflow runs: one parent, a child a task, whatever is repeated, killed or away in between."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.tracking import TrackingUnavailable, list_runs, print_tree, send, server, task_run
from kiwi.tracking.server import connect

Make = Callable[..., RunConfiguration]


def _work(configuration: RunConfiguration, name: str = "train", **tags: str) -> None:
    with task_run(configuration, name) as task:
        task.params({"steps": 3})
        for step in range(3):
            task.metrics({"loss": 3.0 - step}, step=step)
        task.tags(tags)


def test_an_attempt_is_one_parent_with_a_child_a_task(configuration: RunConfiguration, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("card")
    _work(configuration)
    time.sleep(0.01)
    with task_run(configuration, "publish") as task:
        task.artifact(tmp_path / "card.md", "cards")
    said = send(configuration, status="finished")
    (run,) = list_runs(configuration.tracking_uri, configuration.experiment)
    assert said["run_id"] == run["run_id"]
    assert run["status"] == "FINISHED"
    assert [task["name"] for task in run["tasks"]] == ["train", "publish"]
    train = run["tasks"][0]
    assert train["status"] == "FINISHED"
    assert train["params"] == {"steps": "3"}
    assert train["metrics"]["loss"] == 1.0
    assert run["tags"]["kiwi.configuration"] == configuration.identity()
    assert run["params"]["gate.margin"] == "0.02"
    client = connect(configuration.tracking_uri)
    assert [point.step for point in client.get_metric_history(train["run_id"], "loss")] == [0, 1, 2]
    assert (tmp_path / "tracking" / "artifacts" / run["tasks"][1]["run_id"] / "artifacts/cards/card.md").exists()


def test_start_and_end_are_those_of_the_task_and_not_of_the_sending(configuration: RunConfiguration) -> None:
    with task_run(configuration, "score"):
        time.sleep(0.3)
    time.sleep(0.5)
    send(configuration)
    task = list_runs(configuration.tracking_uri, configuration.experiment)[0]["tasks"][0]
    assert 0.3 <= task["seconds"] < 0.5


def test_sending_again_or_after_forgetting_leaves_no_double(configuration: RunConfiguration) -> None:
    _work(configuration)
    first = send(configuration)
    assert send(configuration)["sent"] == 0
    (configuration.workdir / "records" / "manual" / "sent.json").unlink()
    assert send(configuration)["run_id"] == first["run_id"]
    (run,) = list_runs(configuration.tracking_uri, configuration.experiment)
    (task,) = run["tasks"]
    assert len(connect(configuration.tracking_uri).get_metric_history(task["run_id"], "loss")) == 3


def test_a_task_still_at_work_is_shown_and_completed_later(configuration: RunConfiguration) -> None:
    with task_run(configuration, "train") as task:
        task.metrics({"loss": 2.0}, step=0)
        send(configuration)
        shown = list_runs(configuration.tracking_uri, configuration.experiment)[0]["tasks"][0]
        assert (shown["status"], shown["metrics"]["loss"]) == ("RUNNING", 2.0)
        task.metrics({"loss": 1.0}, step=1)
    send(configuration)
    shown = list_runs(configuration.tracking_uri, configuration.experiment)[0]["tasks"][0]
    assert (shown["status"], shown["metrics"]["loss"]) == ("FINISHED", 1.0)


def test_a_retried_task_stays_one_run_and_its_other_parameter_is_kept(configuration: RunConfiguration) -> None:
    def lose_the_node() -> None:
        with task_run(configuration, "train") as task:
            task.params({"steps": 3})
            raise ValueError("lost node")

    with pytest.raises(ValueError):
        lose_the_node()
    send(configuration)
    with task_run(configuration, "train") as task:
        task.params({"steps": 4})
    send(configuration)
    (run,) = list_runs(configuration.tracking_uri, configuration.experiment)
    (task_row,) = run["tasks"]
    assert task_row["status"] == "FINISHED"
    assert (task_row["params"]["steps"], task_row["tags"]["retried.steps"]) == ("3", "4")


def test_the_datasets_commit_is_on_the_parent_and_on_every_task_after_it(configuration: RunConfiguration) -> None:
    _work(configuration, "score")
    _work(configuration, "publish", **{"dataset.revision": "c0ffee", "dataset.version": "refvie/v1"})
    _work(configuration, "train")
    send(configuration)
    (run,) = list_runs(configuration.tracking_uri, configuration.experiment)
    marks = {task["name"]: task["tags"].get("dataset.revision") for task in run["tasks"]}
    assert marks == {"score": None, "publish": "c0ffee", "train": "c0ffee"}
    assert run["tags"]["dataset.revision"] == "c0ffee"


def test_a_server_that_is_away_loses_nothing_and_is_given_up_on_soon(
    configuration: RunConfiguration, make_configuration: Make
) -> None:
    away = make_configuration(tracking_uri="http://127.0.0.1:9")
    _work(away)
    started = time.monotonic()
    with pytest.raises(TrackingUnavailable, match="does not answer") as raised:
        send(away)
    assert time.monotonic() - started < 10
    assert "records are kept" in raised.value.remedy
    assert send(configuration)["sent"] == 7
    assert list_runs(configuration.tracking_uri, "kiwi")[0]["tasks"][0]["metrics"]["loss"] == 1.0


def test_a_locked_database_is_a_server_that_is_away(
    configuration: RunConfiguration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.2)
    _work(configuration)
    holder = sqlite3.connect(tmp_path / "tracking" / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TrackingUnavailable, match="locked"):
        send(configuration)
    holder.execute("ROLLBACK")
    holder.close()
    assert send(configuration)["sent"] == 7


def test_a_file_that_is_no_database_is_a_clear_line(make_configuration: Make, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is not a database, though it is long enough to be asked" * 20)
    configuration = make_configuration(tracking_uri=f"sqlite:///{tmp_path}/notes.txt")
    with pytest.raises(TrackingUnavailable, match="not a database"):
        send(configuration)


def test_a_database_that_was_put_away_is_filled_anew(
    configuration: RunConfiguration, make_configuration: Make, mlflow_template: Path, tmp_path: Path
) -> None:
    _work(configuration)
    send(configuration)
    (tmp_path / "second").mkdir()
    shutil.copy(mlflow_template, tmp_path / "second" / "mlflow.db")
    other = make_configuration(tracking_uri=f"sqlite:///{tmp_path}/second/mlflow.db")
    assert send(other)["sent"] == 7
    assert len(list_runs(other.tracking_uri, "kiwi")[0]["tasks"]) == 1


def test_an_injected_run_is_the_parent(configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(configuration.tracking_uri)
    experiment = client.create_experiment("orchestrator's")
    injected = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    _work(configuration)
    assert send(configuration, status="finished")["run_id"] == injected
    assert [task["name"] for task in list_runs(configuration.tracking_uri, "orchestrator's")[0]["tasks"]] == ["train"]


def test_senders_at_once_deliver_once(configuration: RunConfiguration) -> None:
    _work(configuration)
    threads = [threading.Thread(target=send, args=(configuration,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (run,) = list_runs(configuration.tracking_uri, configuration.experiment)
    assert len(run["tasks"]) == 1


def test_two_processes_that_make_the_database_at_once_both_succeed_in_silence(make_configuration: Make) -> None:
    """Forks of one that has imported everything and touched nothing."""
    body = (
        "import os, sys, mlflow\n"
        "from kiwi.configuration import RunConfiguration; from kiwi.tracking import send, task_run\n"
        "child = os.fork()\n"
        "configuration = RunConfiguration.parse(sys.argv[1 + (child == 0)])\n"
        "with task_run(configuration, 'score'): pass\n"
        "send(configuration)\n"
        "if child == 0: sys.exit()\n"
        "sys.exit(os.waitpid(child, 0)[1] != 0)"
    )
    made = [make_configuration(name) for name in ("one", "two")]
    command = [sys.executable, "-c", body, *(configuration.canonical() for configuration in made)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("", 0)
    assert len(list_runs(made[0].tracking_uri, "kiwi")) == 2


def test_the_tree_names_every_task(configuration: RunConfiguration, capsys: pytest.CaptureFixture[str]) -> None:
    _work(configuration)
    send(configuration, status="failed")
    print_tree(configuration.tracking_uri, configuration.experiment)
    said = capsys.readouterr().out
    assert "train" in said
    assert "finished" in said
    assert "failed" in said
    assert "loss 1" in said


def test_a_copied_work_folder_gets_runs_of_its_own_and_both_are_delivered(
    make_configuration: Make, tmp_path: Path
) -> None:
    original = make_configuration()
    _work(original)
    first = send(original)["run_id"]
    shutil.copytree(tmp_path / "demo", tmp_path / "copy")
    copy = original.model_copy(update={"workspace": str(tmp_path / "copy")})
    for configuration, steps in ((original, 4), (copy, 5)):
        with task_run(configuration, "bench_run") as task:
            task.params({"steps": steps})
    second = send(copy)["run_id"]
    assert send(original)["run_id"] == first
    assert send(copy)["run_id"] == second
    runs = {run["run_id"]: run for run in list_runs(original.tracking_uri, original.experiment)}
    assert set(runs) == {first, second}
    for run_id, steps in ((first, "4"), (second, "5")):
        tasks = {task["name"]: task for task in runs[run_id]["tasks"]}
        assert tasks["bench_run"]["params"] == {"steps": steps}
        assert tasks["train"]["metrics"]["loss"] == 1.0, "the copy's records are sent too"


def test_a_moved_work_folder_goes_on_with_its_run(
    make_configuration: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configuration = make_configuration().model_copy(update={"workspace": "demo"})
    _work(configuration)
    first = send(configuration)["run_id"]
    (tmp_path / "demo").rename(tmp_path / "moved")
    moved = configuration.model_copy(update={"workspace": "moved"})
    _work(moved, "judge")
    assert send(moved)["run_id"] == first
    (run,) = list_runs(moved.tracking_uri, moved.experiment)
    assert (run["tags"]["kiwi.workspace"], len(run["tasks"])) == (str(tmp_path / "moved"), 2)


def test_a_parameter_that_mlflow_holds_otherwise_stops_no_delivery(configuration: RunConfiguration) -> None:
    _work(configuration)
    send(configuration)
    task = list_runs(configuration.tracking_uri, configuration.experiment)[0]["tasks"][0]
    connect(configuration.tracking_uri).log_param(task["run_id"], "seed", "1")
    with task_run(configuration, "train") as again:
        again.params({"seed": 2, "batch": 4})
        again.metrics({"loss": 0.5}, step=9)
    send(configuration)
    task = list_runs(configuration.tracking_uri, configuration.experiment)[0]["tasks"][0]
    assert task["params"] == {"steps": "3", "seed": "1", "batch": "4"}
    assert task["tags"]["retried.seed"] == "2"
    assert task["metrics"]["loss"] == 0.5
