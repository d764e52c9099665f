"""The page that the exit task hands to Kubeflow and MLflow: the run's last word, whatever that is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.finish.component import finish
from kiwi.reports import ONE_FILE
from kiwi.tracking import read_records

Make = Callable[..., Any]


def closed(run: Any, state: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What Kubeflow is handed by the exit task of a run that ended in `state`; nothing is sent anywhere."""
    monkeypatch.setattr("kiwi.tracking.send", lambda configuration, status=None: {"sent": 0})
    monkeypatch.delenv("KIWI_ALERT_URL", raising=False)
    page = SimpleNamespace(path=str(folder / "page.html"))
    finish.python_func(
        config=run.configuration.canonical(), status=SimpleNamespace(state=state), page=page, whole=False
    )
    return Path(page.path).read_text()


@pytest.mark.parametrize(("decision", "word"), [("promote", "is the champion"), ("hold", "stays a challenger")])
def test_kubeflow_and_mlflow_get_the_same_page_with_the_decision_and_why(
    whole_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decision: str, word: str
) -> None:
    run = whole_run(decision)
    page = closed(run, "SUCCEEDED", tmp_path, monkeypatch)
    said = re.sub(r"\s+", " ", page)
    assert word in said
    assert ("is below the floor of 0.8" if decision == "hold" else "leads champion version 1") in said
    assert not re.search(r'(?:src|poster)="(?!data:)[^"]+"', page), "one file, which needs no other"
    (record,) = [record for record in read_records(run.root, "made-up-0001") if record.name == "finish"]
    ((folder, name),) = record.artifacts
    assert (name, (Path(folder) / ONE_FILE).read_text()) == ("report", page)


def test_the_page_of_a_run_that_failed_says_where_and_why(
    made_up_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_up_run()
    run.task("score", 1.0, 2.0, shard=0, error="CurationError: the disk is full")
    page = closed(run, "FAILED", tmp_path, monkeypatch)
    assert "The run stopped at score" in page
    assert "the disk is full" in page
