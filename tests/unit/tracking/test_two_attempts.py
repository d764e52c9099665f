"""Two attempts of one configuration in one work folder, as a cluster may have them: each closes its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from kiwi.cluster import opening
from kiwi.cluster.opening import open_run
from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.runs import PROBE, claim, record_end
from kiwi.workspace import Workspace, read_json

Make = Callable[..., RunConfiguration]


@pytest.mark.parametrize("order", [("ann", "bob"), ("bob", "ann")])
def test_each_attempt_closes_its_own_entry_and_the_newest_speaks_for_the_folder(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    configuration = make_configuration()
    for name in ("ann", "bob"):
        monkeypatch.setenv("KIWI_RUN_ID", name)
        open_run(configuration)
    ends = {"ann": "failed", "bob": "finished"}
    workspace = Workspace.of(configuration)
    for name in order:
        record_end(workspace, ends[name], name)  # type: ignore[arg-type]
    record = read_json(workspace.run_record)
    assert {attempt["id"]: attempt["status"] for attempt in record["attempts"]} == ends
    assert (record["id"], record["status"]) == ("bob", "finished")
    assert all(attempt["finished"] for attempt in record["attempts"])


def test_a_task_tried_again_opens_no_second_attempt(make_configuration: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = make_configuration()
    monkeypatch.setenv("KIWI_RUN_ID", "ann")
    open_run(configuration)
    monkeypatch.setenv("KIWI_RUN_ID", "bob")
    open_run(configuration)
    monkeypatch.setenv("KIWI_RUN_ID", "ann")
    open_run(configuration)
    record = read_json(Workspace.of(configuration).run_record)
    assert [attempt["id"] for attempt in record["attempts"]] == ["ann", "bob"]
    assert record["id"] == "bob"


def test_a_folder_that_another_run_is_just_opening_is_waited_for(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = make_configuration()
    monkeypatch.setenv("KIWI_RUN_ID", "bob")
    with claim(configuration, "kfp", "ann"):
        monkeypatch.setattr(opening, "OPENING_SECONDS", 0.3)
        with pytest.raises(UsageError, match="another run is at work"):
            open_run(configuration)
        monkeypatch.setattr(opening, "OPENING_SECONDS", 30.0)
        other = threading.Thread(target=open_run, args=(configuration,))
        other.start()
        time.sleep(0.3)
    other.join(20)
    attempts = read_json(Workspace.of(configuration).run_record)["attempts"]
    assert [attempt["id"] for attempt in attempts] == ["ann", "bob"]


def test_a_file_by_which_another_start_tries_the_folder_is_no_other_use_of_it(make_configuration: Make) -> None:
    configuration = make_configuration()
    root = Workspace.of(configuration).root
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{PROBE}4711").touch()
    with claim(configuration, "kfp", "ann") as attempt:
        assert attempt.kind == "new"


def test_a_second_run_takes_no_verdict_from_one_that_is_at_work_and_forgets_one_that_is_over(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = make_configuration()
    workspace = Workspace.of(configuration)
    monkeypatch.setenv("KIWI_RUN_ID", "ann")
    open_run(configuration)
    workspace.decision.write_text("{}")  # ann has decided, and is about to promote
    monkeypatch.setenv("KIWI_RUN_ID", "bob")
    open_run(configuration)
    assert workspace.decision.exists()
    for name in ("ann", "bob"):
        record_end(workspace, "finished", name)
    monkeypatch.setenv("KIWI_RUN_ID", "cleo")
    open_run(configuration)
    assert not workspace.decision.exists()
