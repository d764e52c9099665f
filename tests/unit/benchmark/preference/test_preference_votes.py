"""The store of votes on SQLite: once, only what was assigned, never lost."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiwi.benchmark.preference.votes import Choosing, VoteStore, VotingError, votes_address
from kiwi.errors import KiwiError, UsageError

ITEMS = [f"item{number}" for number in range(8)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoteStore]:
    opened = VoteStore(str(tmp_path / "votes.db"), "study")
    yield opened
    opened.close()


def least_taken(choosing: Choosing) -> tuple[str, str, bool] | None:
    """A stand-in for the balanced choice: the first of the items assigned least often."""
    left = [item for item in ITEMS if item not in choosing.mine]
    return (min(left, key=lambda item: choosing.taken.get(item, 0)), "pair", False) if left else None


def test_open_assignments_are_the_same_until_they_are_voted_on(store: VoteStore, tmp_path: Path) -> None:
    rater = store.join("anna", 2).rater_id
    first, _, _ = store.open_assignments(rater, 2, least_taken)
    store.close()
    again, voted, _ = VoteStore(str(tmp_path / "votes.db"), "study").open_assignments(rater, 2, least_taken)
    assert first == again
    assert voted == 0


def test_a_vote_sent_twice_counts_once_and_another_choice_is_refused(store: VoteStore) -> None:
    rater = store.join("anna", 2).rater_id
    (given, _), _, _ = store.open_assignments(rater, 2, least_taken)
    assert store.vote(rater, given.assignment_id, 0, "left", 1.0)
    assert not store.vote(rater, given.assignment_id, 0, "left", 1.0)
    with pytest.raises(VotingError) as refused:
        store.vote(rater, given.assignment_id, 0, "right", 1.0)
    assert refused.value.code == "already_voted"
    assert [vote.choice for vote in store.votes()] == ["left"]


def test_nobody_votes_on_what_was_given_to_someone_else(store: VoteStore) -> None:
    anna, ben = store.join("anna", 2).rater_id, store.join("ben", 2).rater_id
    (given, _), _, _ = store.open_assignments(anna, 2, least_taken)
    for rater, assignment in ((ben, given.assignment_id), (anna, "made-up")):
        with pytest.raises(VotingError) as refused:
            store.vote(rater, assignment, 0, "left", 1.0)
        assert refused.value.code == "unassigned"
    assert store.votes() == []


def test_an_undone_vote_is_open_again_and_stays_in_the_history(store: VoteStore) -> None:
    rater = store.join("anna", 2).rater_id
    (first, second), _, _ = store.open_assignments(rater, 2, least_taken)
    store.vote(rater, first.assignment_id, 0, "left", 1.0)
    store.vote(rater, second.assignment_id, 0, "tie", 1.0)
    assert store.undo(rater)
    (again, *_), voted, _ = store.open_assignments(rater, 2, least_taken)
    assert (again.item_id, again.round, voted) == (second.item_id, 1, 1)
    assert store.undone() == 1
    assert store.undo(rater)
    assert not store.undo(rater)


def test_a_vote_that_was_on_its_way_when_it_was_undone_does_not_come_back(store: VoteStore) -> None:
    rater = store.join("anna", 2).rater_id
    (given, _), _, _ = store.open_assignments(rater, 2, least_taken)
    store.vote(rater, given.assignment_id, 0, "left", 1.0)
    store.undo(rater)
    with pytest.raises(VotingError) as refused:
        store.vote(rater, given.assignment_id, 0, "left", 1.0)
    assert refused.value.code == "stale"


def test_a_name_is_taken_once_and_no_more_raters_join_than_asked(store: VoteStore) -> None:
    store.join("Anna", 2)
    with pytest.raises(VotingError) as taken:
        store.join("anna", 2)
    store.join("ben", 2)
    with pytest.raises(VotingError) as full:
        store.join("carl", 2)
    assert (taken.value.code, full.value.code) == ("name_taken", "full")
    assert [rater.name for rater in store.raters()] == ["Anna", "ben"]


def test_an_invited_rater_is_the_same_one_each_time(store: VoteStore) -> None:
    assert store.invite("anna") == store.invite("anna")


def test_time_used_cannot_exceed_the_time_since_the_assignment(store: VoteStore) -> None:
    rater = store.join("anna", 2).rater_id
    (given, _), _, _ = store.open_assignments(rater, 2, least_taken)
    store.vote(rater, given.assignment_id, 0, "left", 5000.0)
    assert store.votes()[0].seconds < 60


def test_an_abandoned_assignment_goes_to_others_and_its_rater_may_still_vote(
    store: VoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = store.join("anna", 2).rater_id, store.join("ben", 2).rater_id
    (given,), _, _ = store.open_assignments(anna, 1, least_taken)
    _, _, fresh = store.open_assignments(ben, 1, least_taken)
    assert fresh.taken[given.item_id] == 1
    monkeypatch.setattr("kiwi.benchmark.preference.votes.ABANDONED_AFTER", -1.0)
    _, _, later = store.open_assignments(ben, 1, least_taken)
    assert later.taken[given.item_id] == 0
    assert later.issued[given.item_id] == 1
    assert store.vote(anna, given.assignment_id, 0, "tie", 1.0)


def test_raters_at_the_same_moment_get_items_evenly_and_lose_no_vote(store: VoteStore) -> None:
    raters = [store.join(f"r{number}", 8).rater_id for number in range(8)]

    def rate(rater: str) -> None:
        for _ in ITEMS:
            (given, *_), _, _ = store.open_assignments(rater, 1, least_taken)
            store.vote(rater, given.assignment_id, 0, "left", 1.0)

    threads = [threading.Thread(target=rate, args=(rater,)) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(vote.item_id for vote in store.votes()) == dict.fromkeys(ITEMS, 8)


def test_two_studies_in_one_database_do_not_see_each_other(store: VoteStore, tmp_path: Path) -> None:
    other = VoteStore(str(tmp_path / "votes.db"), "another")
    rater = store.join("anna", 2)
    assert other.join("anna", 2).rater_id != rater.rater_id
    assert other.rater(rater.rater_id) is None


def test_a_password_is_not_shown_and_an_unknown_database_is_named() -> None:
    address = votes_address("postgresql://kiwi:sesame@db:5432/votes")
    assert address.drivername == "postgresql+psycopg"
    assert "sesame" not in address.render_as_string(hide_password=True)
    with pytest.raises(UsageError, match="mysql"):
        votes_address("mysql://db/votes")
    with pytest.raises(UsageError, match="malformed"):
        votes_address("://")


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    path.write_text("these are not votes, and long enough to be looked at " * 20)
    with pytest.raises(KiwiError, match=r"votes\.db"):
        VoteStore(str(path), "study")
    assert path.read_text().startswith("these")


def test_a_power_cut_loses_no_vote_that_was_answered(store: VoteStore, tmp_path: Path) -> None:
    rater = store.join("anna", 2).rater_id
    with store._engine.connect() as connection:  # FULL: each commit reaches the disk before it is answered
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    (given, _), _, _ = store.open_assignments(rater, 2, least_taken)
    store.vote(rater, given.assignment_id, 0, "left", 1.0)
    other = sqlite3.connect(tmp_path / "votes.db")
    assert other.execute("select count(*) from preference_vote").fetchone() == (1,)
    other.close()
