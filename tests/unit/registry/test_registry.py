"""The registry with a real MLflow: versions, aliases, one champion whatever happens at once, a whole history."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError, UsageError
from kiwi.registry import (
    ChampionChanged,
    HistoryUnavailable,
    NotPromoted,
    RegistryError,
    RolledBack,
    champion,
    decide,
    delete_version,
    download_model,
    history,
    hold_candidate,
    list_versions,
    promote,
    promote_candidate,
    recorded_scores,
    register,
    rollback,
    show,
)
from kiwi.registry.history import Entry, History, history_path
from kiwi.registry.promotion import Change
from kiwi.registry.versions import checked_alias
from kiwi.tracking import TrackingUnavailable, list_runs, send, silent, task_run
from kiwi.tracking.server import connect
from kiwi.workspace import read_json, write_json
from tests.unit.registry.registering import NAME, bare_versions, trained

Make = Callable[..., RunConfiguration]


def _attempt(
    monkeypatch: pytest.MonkeyPatch, configuration: RunConfiguration, attempt: str, overall: float, **changes: Any
) -> dict[str, Any]:
    """One attempt's way through the registry, as the pipeline takes it."""
    monkeypatch.setenv("KIWI_RUN_ID", attempt)
    trained(configuration, overall, **changes)
    register(configuration, silent())
    if decide(configuration, silent()) == "promote":
        return promote_candidate(configuration, silent())
    return hold_candidate(configuration, silent())


def test_a_registered_model_carries_its_provenance_and_loads_back(configuration: RunConfiguration) -> None:
    trained(configuration)
    with task_run(configuration, "register") as task:
        said = register(configuration, task)
    version = show(configuration.tracking_uri, NAME, "challenger")
    assert (said["version"], said["aliases"]) == ("1", ["challenger"])
    assert version.tags["dataset.revision"] == "c0ffee"
    assert version.tags["kiwi.configuration"] == configuration.identity()
    assert (version.tags["benchmark.revision"], version.tags["benchmark.judge"]) == ("r1", "measured")
    assert recorded_scores(version, "r1", "measured")["overall"] == 3.0  # type: ignore[index]
    assert recorded_scores(version, "r2", "measured") is None
    folder = download_model(configuration, alias_or_version="v1")
    assert (folder / "weights.safetensors").read_bytes() == b"k1" * 100
    copied = download_model(configuration.tracking_uri, NAME, "challenger", out=configuration.workdir / "copy")
    assert (copied / "model_index.json").exists()
    send(configuration)
    (run,) = list_runs(configuration.tracking_uri, configuration.experiment)
    assert [task["run_id"] for task in run["tasks"]] == [version.run_id]
    assert run["tasks"][0]["status"] == "FINISHED"
    assert run["tasks"][0]["tags"]["model.version"] == "1"


def test_a_registered_model_keeps_its_configuration_its_scores_and_its_chosen_edits(
    configuration: RunConfiguration, tmp_path: Path
) -> None:
    trained(configuration, key="k1")
    benchmark = configuration.workdir / "benchmark"
    scores = read_json(benchmark / "scores.json")
    write_json(benchmark / "scores.json", {**scores, "key": "b1"})
    shown = {"id": "swap-0001", "files": {"result": "b1/gallery/swap-0001/result.mp4", "source": "b1/source.mp4"}}
    write_json(benchmark / "edits.json", {"key": "b1", "samples": [shown, {"id": "swap-0002", "files": {}}]})
    for name in ("result.mp4", "source.mp4"):
        (benchmark / "b1" / "gallery" / "swap-0001").mkdir(parents=True, exist_ok=True)
        (benchmark / "b1" / "gallery" / "swap-0001" / name).write_bytes(name.encode())
    client, run_id = connect(configuration.tracking_uri), register(configuration, silent())["run_id"]
    kept = {item.path for item in client.list_artifacts(run_id)}
    assert kept == {"configuration.json", "edits", "model", "scores.json"}
    path = client.download_artifacts(run_id, "edits/swap-0001/result.mp4", str(tmp_path))
    assert Path(path).read_bytes() == b"result.mp4"
    assert [item.path for item in client.list_artifacts(run_id, "edits/swap-0001")] == ["edits/swap-0001/result.mp4"]


def test_a_retried_registration_is_the_same_version(configuration: RunConfiguration) -> None:
    trained(configuration)
    first = register(configuration, silent())
    assert register(configuration, silent()) == first
    assert len(list_versions(configuration.tracking_uri, NAME)) == 1
    assert [entry.action for entry in history(configuration.tracking_uri, NAME)] == ["register"]


def test_a_first_model_is_promoted_over_copying_and_an_identical_one_is_held_against_it(
    configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _attempt(monkeypatch, configuration, "run-1", 3.0)
    assert (first["decision"], first["aliases"]) == ("promote", ["champion"])
    assert read_json(configuration.workdir / "decision.json")["compared_with"] == "copy_source"
    second = _attempt(monkeypatch, configuration, "run-2", 3.0)
    assert (second["version"], second["decision"], second["aliases"]) == ("2", "hold", ["challenger"])
    said = read_json(configuration.workdir / "decision.json")
    assert said["compared_with"] == "champion"
    assert said["champion"] == {"version": "1", "overall": 3.0}
    assert "equal to champion version 1" in said["reasons"][0]
    third = _attempt(monkeypatch, configuration, "run-3", 3.5)
    assert (third["version"], third["decision"], third["aliases"]) == ("3", "promote", ["champion"])
    assert show(configuration.tracking_uri, NAME, "previous").version == "1"
    told = [(entry.action, entry.version, entry.champion_before, entry.champion_after, entry.run)
            for entry in history(configuration.tracking_uri, NAME)]  # fmt: skip
    assert told == [
        ("register", "1", None, None, "run-1"), ("pass", "1", None, None, "run-1"),
        ("promote", "1", None, "1", "run-1"),
        ("register", "2", "1", "1", "run-2"), ("hold", "2", "1", "1", "run-2"),
        ("register", "3", "1", "1", "run-3"), ("pass", "3", "1", "1", "run-3"), ("promote", "3", "1", "3", "run-3"),
    ]  # fmt: skip
    assert json.loads(show(configuration.tracking_uri, NAME, "2").tags["kiwi.reasons"]) == said["reasons"]


def test_repeating_the_steps_of_one_attempt_changes_nothing(
    configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _attempt(monkeypatch, configuration, "run-1", 3.0)
    told = history(configuration.tracking_uri, NAME)
    assert _attempt(monkeypatch, configuration, "run-1", 3.0) == first
    assert history(configuration.tracking_uri, NAME) == told


def test_a_champion_that_came_between_decision_and_promotion_is_compared_with(
    configuration: RunConfiguration, make_configuration: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = make_configuration("rival")
    monkeypatch.setenv("KIWI_RUN_ID", "run-1")
    trained(configuration, 3.0)
    register(configuration, silent())
    assert decide(configuration, silent()) == "promote"
    _attempt(monkeypatch, rival, "run-2", 4.0)
    monkeypatch.setenv("KIWI_RUN_ID", "run-1")
    said = promote_candidate(configuration, silent())
    assert said["decision"] == "hold"
    assert champion(configuration).version == "2"  # type: ignore[union-attr]
    assert "1.000 behind champion version 2" in read_json(configuration.workdir / "decision.json")["reasons"][0]


def test_simultaneous_promotions_leave_one_champion_and_a_complete_history(configuration: RunConfiguration) -> None:
    """From two processes of ten threads each: forks of one that has imported everything and touched nothing."""
    count = 20
    bare_versions(configuration, count)
    body = (
        "import os, sys, threading, mlflow\nfrom kiwi.registry import promote\n"
        "failed = []\n"
        "def work(number):\n"
        "    try: promote(sys.argv[1], sys.argv[2], number, who='w' + number, why='race')\n"
        "    except BaseException as error: failed.append(repr(error))\n"
        "child = os.fork()\n"
        "threads = [threading.Thread(target=work, args=(number,)) for number in sys.argv[3 + (child == 0) :: 2]]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "if failed: print(*failed, sep='; ', file=sys.stderr, flush=True)\n"
        "if child == 0: os._exit(bool(failed))\n"
        "sys.exit(bool(failed) or os.waitpid(child, 0)[1] != 0)"
    )
    numbers = [str(number) for number in range(1, count + 1)]
    command = [sys.executable, "-c", body, configuration.tracking_uri, NAME, *numbers]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = history(configuration.tracking_uri, NAME)
    assert sorted(entry.version for entry in told) == sorted(numbers)
    assert [entry.champion_before for entry in told] == [None, *(entry.version for entry in told[:-1])]
    found = list_versions(configuration.tracking_uri, NAME)
    assert [version.version for version in found if "champion" in version.aliases] == [told[-1].version]
    assert [version.version for version in found if "previous" in version.aliases] == [told[-2].version]


@pytest.mark.parametrize("point", ["before the aliases", "between the aliases", "before the history"])
def test_a_crash_in_the_middle_of_a_promotion_is_finished_by_the_next_change(
    configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    bare_versions(configuration, 3)
    uri = configuration.tracking_uri
    promote(uri, NAME, "1", why="first")
    client = connect(uri)
    real_set, real_append = client.set_registered_model_alias, History.append

    def crash_at_set(name: str, alias: str, version: str) -> None:
        if point == "between the aliases" and alias == "champion":
            real_set(name, alias, version)
        raise KeyboardInterrupt

    def crash_at_append(self: History, entry: Entry, intent: int | None = None) -> Entry:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if point == "before the history":
            patch.setattr(History, "append", crash_at_append)
        else:
            patch.setattr(client, "set_registered_model_alias", crash_at_set)
        with pytest.raises(KeyboardInterrupt):
            promote(uri, NAME, "2", why="second")
    assert History.append is real_append
    promote(uri, NAME, "3", why="third")
    assert [(entry.champion_before, entry.champion_after, entry.why) for entry in history(uri, NAME)] == [
        (None, "1", "first"), ("1", "2", "second"), ("2", "3", "third"),
    ]  # fmt: skip
    assert show(uri, NAME, "previous").version == "2"


def test_rolling_back_goes_one_champion_back_at_a_time(configuration: RunConfiguration) -> None:
    bare_versions(configuration, 3)
    uri = configuration.tracking_uri
    for number in ("1", "2", "3"):
        promote(uri, NAME, number, why="next")
    assert rollback(uri, NAME, why="flicker", who="ada").version == "2"
    assert show(uri, NAME, "previous").version == "1"
    assert rollback(uri, NAME).version == "1"
    with pytest.raises(RegistryError, match="no previous champion"):
        rollback(uri, NAME)
    entry = history(uri, NAME)[3]
    assert (entry.action, entry.champion_before, entry.champion_after) == ("rollback", "3", "2")
    assert (entry.who, entry.why) == ("ada", "flicker")
    assert entry.at.endswith("+00:00")


def test_only_what_the_gate_let_through_is_promoted_unless_forced_with_a_reason(
    configuration: RunConfiguration,
) -> None:
    bare_versions(configuration, 1, decision=None)
    uri = configuration.tracking_uri
    with pytest.raises(NotPromoted, match="gate has not decided"):
        promote(uri, NAME, "1")
    with pytest.raises(UsageError, match="needs a reason"):
        promote(uri, NAME, "1", force=True)
    promote(uri, NAME, "1", force=True, why="demo at noon")
    (entry,) = history(uri, NAME)
    assert entry.forced
    assert entry.why == "demo at noon"


def test_what_an_alias_points_to_is_not_deleted(configuration: RunConfiguration) -> None:
    bare_versions(configuration, 2)
    uri = configuration.tracking_uri
    promote(uri, NAME, "1", why="x")
    with pytest.raises(RegistryError, match="is the champion, and is not deleted"):
        delete_version(uri, NAME, "1")
    delete_version(uri, NAME, "2", why="old")
    with pytest.raises(RegistryError, match="has no version '2'"):
        show(uri, NAME, "2")
    assert history(uri, NAME)[-1].action == "delete"


def test_an_alias_moved_by_hand_is_history_too(configuration: RunConfiguration) -> None:
    bare_versions(configuration, 3)
    uri = configuration.tracking_uri
    promote(uri, NAME, "1", why="x")
    connect(uri).set_registered_model_alias(NAME, "champion", "2")
    promote(uri, NAME, "3", why="y")
    assert [(entry.action, entry.champion_before, entry.champion_after) for entry in history(uri, NAME)] == [
        ("promote", None, "1"), ("outside", "1", "2"), ("promote", "2", "3"),
    ]  # fmt: skip


def test_a_champion_deleted_by_hand_is_history_and_the_next_promotion_goes_on(configuration: RunConfiguration) -> None:
    bare_versions(configuration, 2)
    uri = configuration.tracking_uri
    promote(uri, NAME, "1", why="x")
    connect(uri).delete_model_version(NAME, "1")
    with pytest.raises(RegistryError, match="has no version '1'"):
        promote(uri, NAME, "1")
    promote(uri, NAME, "2", why="y")
    assert [(entry.action, entry.champion_before, entry.champion_after) for entry in history(uri, NAME)] == [
        ("promote", None, "1"), ("outside", "1", None), ("promote", None, "2"),
    ]  # fmt: skip


@pytest.mark.parametrize("deleted", ["1", "2"])
def test_a_promotion_that_crashed_and_whose_version_was_deleted_since_does_not_block_the_registry(
    configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch, deleted: str
) -> None:
    """Version 2 was being promoted over version 1: either may be gone when the next change comes."""
    bare_versions(configuration, 3)
    uri = configuration.tracking_uri
    promote(uri, NAME, "1", why="first")
    client = connect(uri)

    def crash(*_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_registered_model_alias", crash)
        with pytest.raises(KeyboardInterrupt):
            promote(uri, NAME, "2", why="second")
    client.delete_model_version(NAME, deleted)
    promote(uri, NAME, "3", why="third")
    told = [(entry.action, entry.version, entry.champion_after) for entry in history(uri, NAME)]
    middle = ("abandoned", "2", "1") if deleted == "2" else ("promote", "2", "2")
    assert told == [("promote", "1", "1"), middle, ("promote", "3", "3")]
    assert show(uri, NAME, "previous").version == ("1" if deleted == "2" else "2")


def test_a_deletion_that_crashed_is_finished_and_in_the_history_once(
    configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_versions(configuration, 2)
    uri = configuration.tracking_uri

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(History, "append", crash)
        with pytest.raises(KeyboardInterrupt):
            delete_version(uri, NAME, "1", why="old")
    promote(uri, NAME, "2", why="x")
    assert [(entry.action, entry.version) for entry in history(uri, NAME)] == [("delete", "1"), ("promote", "2")]
    assert [version.version for version in list_versions(uri, NAME)] == ["2"]


def test_a_decision_against_another_champion_does_not_promote_by_hand(
    configuration: RunConfiguration, make_configuration: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_RUN_ID", "run-1")
    trained(configuration, 3.0)
    register(configuration, silent())
    assert decide(configuration, silent()) == "promote"
    _attempt(monkeypatch, make_configuration("rival"), "run-2", 4.0)
    uri = configuration.tracking_uri
    with pytest.raises(ChampionChanged, match="decided on against no champion, the champion is 2 now"):
        promote(uri, NAME, "1")
    assert promote(uri, NAME, "1", force=True, why="demo").version == "1"
    assert history(uri, NAME)[-1].forced


def test_what_was_rolled_back_comes_again_by_force_alone(
    configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    _attempt(monkeypatch, configuration, "run-1", 3.0)
    _attempt(monkeypatch, configuration, "run-2", 4.0, key="k2")
    uri = configuration.tracking_uri
    rollback(uri, NAME, why="flicker", who="ada")
    with pytest.raises(RolledBack, match=r"rolled back by ada on .*: flicker"):
        promote(uri, NAME, "2")
    assert "rolled back by ada" in promote_candidate(configuration, silent())["waits"]["why"]
    assert champion(configuration).version == "1"  # type: ignore[union-attr]
    promote(uri, NAME, "2", force=True, why="flicker was the player's")
    assert champion(configuration).version == "2"  # type: ignore[union-attr]


@pytest.mark.parametrize("wrong", ["latest", "Latest", "v1", "1", "", "  ", "production", "champion "])
def test_a_reserved_or_empty_name_is_no_alias(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"is no alias|neither a version nor an alias"):
        checked_alias(wrong)


def test_the_history_cannot_be_rewritten(configuration: RunConfiguration) -> None:
    bare_versions(configuration, 1)
    promote(configuration.tracking_uri, NAME, "1", why="x")
    connection = sqlite3.connect(history_path(configuration.tracking_uri))
    for statement in ("UPDATE history SET who = 'eve'", "DELETE FROM history"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("wrong", ["production", "latest", "", "v", "-1", "champion'"])
def test_a_name_that_is_no_alias_is_refused_with_those_that_are(configuration: RunConfiguration, wrong: str) -> None:
    with pytest.raises(UsageError) as raised:
        show(configuration.tracking_uri, NAME, wrong)
    assert "challenger, champion, previous" in raised.value.remedy


def test_a_model_name_with_a_path_in_it_is_refused(configuration: RunConfiguration) -> None:
    with pytest.raises(UsageError, match="no model name"):
        list_versions(configuration.tracking_uri, "a/b")


def test_what_is_not_registered_is_said_with_what_is(configuration: RunConfiguration) -> None:
    with pytest.raises(RegistryError, match="no model 'kiwi-edit-tiny'"):
        show(configuration.tracking_uri, NAME)
    assert champion(configuration) is None
    assert list_versions(configuration.tracking_uri, NAME) == []
    bare_versions(configuration, 2)
    with pytest.raises(RegistryError) as raised:
        show(configuration.tracking_uri, NAME)
    assert raised.value.remedy == "newest versions: 2, 1"


def test_files_that_are_gone_or_changed_are_found_out(configuration: RunConfiguration) -> None:
    trained(configuration)
    register(configuration, silent())
    folder = download_model(configuration, alias_or_version="1")
    (folder / "weights.safetensors").write_bytes(b"spoilt")
    with pytest.raises(RegistryError, match="not those that were registered"):
        download_model(configuration, alias_or_version="1")
    shutil.rmtree(folder)
    with pytest.raises(RegistryError, match="are gone"):
        download_model(configuration, alias_or_version="1")


def test_a_registry_that_is_away_or_locked_changes_nothing(
    configuration: RunConfiguration, make_configuration: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    away = make_configuration(tracking_uri="http://127.0.0.1:9")
    trained(away)
    with pytest.raises(TrackingUnavailable):
        register(away, silent())
    assert not (away.workdir / "model.json").exists()
    bare_versions(configuration, 1)
    (tmp_path / "history").mkdir()
    monkeypatch.setenv("KIWI_HISTORY", str(tmp_path / "history"))
    with pytest.raises(HistoryUnavailable, match="registry history"):
        promote(configuration.tracking_uri, NAME, "1", why="x")
    assert list_versions(configuration.tracking_uri, NAME)[0].aliases == ()


def test_registering_before_training_or_judging_is_said(configuration: RunConfiguration) -> None:
    with pytest.raises(KiwiError, match="no trained model"):
        register(configuration, silent())
    with pytest.raises(KiwiError, match="no registered model"):
        decide(configuration, silent())


def test_aliases_are_moved_by_change_alone() -> None:
    """Every mover of aliases goes through Change, which writes the history."""
    root = Path(sys.modules[Change.__module__].__file__ or "").parents[1]
    movers = [path.name for path in root.rglob("*.py") if "set_registered_model_alias" in path.read_text()]
    assert movers == ["promotion.py"]
