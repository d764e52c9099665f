"""Retraining starts once for each new dataset commit, and otherwise rests."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from kiwi.cluster import retraining
from kiwi.cluster.opening import open_run, trained_model
from kiwi.errors import KiwiError
from kiwi.registry.versions import ModelVersion
from kiwi.runs import close_run
from kiwi.tracking import TrackingUnavailable, read_records, silent

NEW, OLD = "a" * 40, "b" * 40


@pytest.fixture
def known(monkeypatch):
    """The dataset repository and the registry, replaced by what they would say: their own tests cover them."""
    said = {"newest": {"revision": NEW, "version": "refvie/v2"}, "models": []}
    monkeypatch.setattr(retraining, "list_versions", lambda repository: [said["newest"]] if said["newest"] else [])
    monkeypatch.setattr(retraining, "list_models", lambda uri, name: said["models"])
    reigning = lambda configuration: next((it for it in said["models"] if "champion" in it.aliases), None)  # noqa: E731
    monkeypatch.setattr(retraining, "champion", reigning)
    return said


def model(version, revision, *aliases):
    return ModelVersion("kiwi", version, aliases, 0.0, "run", "source", {"dataset.revision": revision})


@pytest.mark.parametrize(
    ("models", "decision"),
    [
        ([model("1", OLD, "champion")], "train"),
        ([], "train"),
        ([model("1", NEW, "champion")], "rest"),
        ([model("1", OLD, "champion"), model("2", NEW, "challenger")], "rest"),
    ],
    ids=["older champion", "no champion", "champion of this commit", "held model of this commit"],
)
def test_only_a_commit_that_no_model_was_trained_on_starts_a_training(configuration, known, models, decision):
    known["models"] = models
    assert retraining.decide(configuration, silent()) == decision


def test_without_a_dataset_there_is_nothing_to_train_on(configuration, known):
    known["newest"] = None
    assert retraining.decide(configuration, silent()) == "rest"


def test_a_commit_starts_one_run_and_that_run_may_be_tried_again(configuration, known, monkeypatch):
    decisions = []
    for run in ("run-1", "run-1", "run-2"):
        monkeypatch.setenv("KIWI_RUN_ID", run)
        decisions.append(retraining.decide(configuration, silent()))
    assert decisions == ["train", "train", "rest"]
    known["newest"] = {"revision": "c" * 40, "version": "refvie/v3"}
    assert retraining.decide(configuration, silent()) == "train"


def test_of_many_runs_at_once_exactly_one_takes_a_commit(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda number: retraining.take(tmp_path / "r" / "x.json", f"run-{number}"), range(64)))
    assert taken.count(None) == 1
    assert len({holder for holder in taken if holder}) == 1


def test_a_registry_that_does_not_answer_starts_nothing(make_configuration, monkeypatch):
    monkeypatch.setattr(retraining, "list_versions", lambda repository: [{"revision": NEW, "version": "refvie/v2"}])
    with pytest.raises(TrackingUnavailable):
        retraining.decide(make_configuration(tracking_uri="http://127.0.0.1:9"), silent())


def test_a_run_on_a_cluster_is_opened_once_and_closed_by_its_exit_task(configuration, monkeypatch):
    monkeypatch.setenv("KIWI_RUN_ID", "run-1")
    open_run(configuration)
    open_run(configuration)
    record = configuration.workdir / "run.json"
    said = json.loads(record.read_text())
    assert (said["id"], said["backend"], said["status"], len(said["attempts"])) == ("run-1", "kfp", "running", 1)
    close_run(configuration, "SUCCEEDED", whole=False)
    assert json.loads(record.read_text())["status"] == "finished"
    assert not (configuration.workdir / "summary.json").exists()
    assert [task.label for task in read_records(configuration.workdir, "run-1")]


def test_an_evaluation_without_a_trained_model_says_what_to_run_first(configuration, monkeypatch):
    monkeypatch.setattr("kiwi.training.results.finished_stage", lambda configuration, name: None)
    monkeypatch.setattr("kiwi.training.checkpoint_folder", lambda configuration, name: "/work/x")
    with pytest.raises(KiwiError, match="no trained model"):
        trained_model(configuration)
