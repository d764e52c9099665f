"""`kiwi bench prefer`: what it refuses before anything is started, and what it shows of a study."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kiwi.benchmark.preference.study import Study, save_study
from kiwi.benchmark.preference.votes import VoteStore
from kiwi.cli.bench import app
from kiwi.errors import KiwiError, UsageError
from kiwi.workspace import write_json


def ask(*arguments: str) -> str:
    """What the command prints. Raises what it raises."""
    said = CliRunner().invoke(app, ["prefer", *arguments], catch_exceptions=False)
    return said.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--raters", "0"], "0 raters"),
        (["--raters", "anna,,ben"], "cannot name a rater"),
        (["--raters", "anna,Anna"], "named twice"),
        (["--raters", "<b>"], "cannot name a rater"),
        (["--raters", "2", "--overlap", "3"], "3 of 2 raters"),
        (["--public-url", "prefer.example"], "no address of a site"),
        (["--public-url", "https://x.example/path"], "no address of a site"),
        (["--port", "0"], "no preference study"),
        (["--port", "0", "nowhere", "elsewhere"], "no folder of edits"),
        (["--results"], "no preference study"),
        (["--results", "some-edits"], "take no edits"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        ask("--study", str(tmp_path / "study"), *arguments)
    assert not (tmp_path / "study").exists()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}"):
            ask("--study", str(tmp_path), "--port", str(port))


def test_results_are_shown_to_people_and_as_json(make_study: Callable[..., Study], tmp_path: Path) -> None:
    study = make_study(samples=4)
    save_study(tmp_path, study)
    store = VoteStore(str(tmp_path / "votes.db"), study.study_id)
    rater = store.join("anna", 1).rater_id
    items = iter(study.comparisons)
    opened, _, _ = store.open_assignments(rater, 4, lambda _: (next(items).item_id, "pair", True))
    for assignment in opened:
        store.vote(rater, assignment.assignment_id, 0, "left", 1.0)
    write_json(tmp_path / "settings.json", {"raters": 1, "overlap": 1, "votes": store.name})
    store.close()
    said = json.loads(ask("--study", str(tmp_path), "--results", "--json"))
    assert (said["votes"], said["votes_wanted"], said["comparisons_complete"]) == (4, 4, 4)
    assert said["all"]["pairs"][0]["losses"] == 4  # flipped: the second set was on the left
    shown = ask("--study", str(tmp_path), "--results")
    assert "model0 over model1" in " ".join(shown.split())
    assert "anna" in shown


def test_results_are_found_from_another_folder_and_where_the_study_was_moved_to(
    make_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    study = make_study(samples=1)
    save_study(Path("study"), study)
    store = VoteStore("study/votes.db", study.study_id)
    rater = store.join("anna", 1).rater_id
    opened, _, _ = store.open_assignments(rater, 1, lambda _: (study.comparisons[0].item_id, "pair", False))
    store.vote(rater, opened[0].assignment_id, 0, "left", 1.0)
    assert store.name == f"sqlite:///{tmp_path}/there/study/votes.db"
    store.close()
    write_json(Path("study") / "settings.json", {"raters": 1, "overlap": 1, "votes": ""})
    (tmp_path / "there" / "study").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert json.loads(ask("--study", str(tmp_path / "moved"), "--results", "--json"))["votes"] == 1


def test_results_of_votes_that_are_gone_are_refused_and_no_empty_file_is_made(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    save_study(tmp_path, make_study())
    for kept in ("", f"sqlite:///{tmp_path}/lost/votes.db"):
        write_json(tmp_path / "settings.json", {"raters": 1, "overlap": 1, "votes": kept})
        with pytest.raises(KiwiError, match=r"there are no votes at .*votes\.db"):
            ask("--study", str(tmp_path), "--results")
    assert not (tmp_path / "lost").exists()
    assert not (tmp_path / "votes.db").exists()


def test_votes_behind_a_password_are_asked_for_not_guessed(make_study: Callable[..., Study], tmp_path: Path) -> None:
    save_study(tmp_path, make_study())
    write_json(tmp_path / "settings.json", {"raters": 1, "overlap": 1, "votes": "postgresql+psycopg://u:***@db/votes"})
    with pytest.raises(KiwiError, match="votes are in"):
        ask("--study", str(tmp_path), "--results")
