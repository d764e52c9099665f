"""Votes in a real PostgreSQL: the same promises as on SQLite, with raters and servers at the same moment.

Uses KIWI_TEST_POSTGRES (an address of an empty database) or a server of its own where `initdb` is installed; skipped
with the reason where neither is there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kiwi.benchmark.preference.votes import Choosing, VoteStore, VotingError
from kiwi.errors import KiwiError

pytest.importorskip("psycopg", reason="psycopg is not installed")

ITEMS = [f"item{number}" for number in range(12)]


def program(name: str) -> str | None:
    """A program of PostgreSQL; Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or (str(found[0]) if found else None)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a PostgreSQL database."""
    if named := os.environ.get("KIWI_TEST_POSTGRES"):
        yield named
        return
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed (or set KIWI_TEST_POSTGRES)")
    as_user: list[str] = []
    home = tempfile.mkdtemp(prefix="kiwi-postgres-")
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if shutil.which("runuser") is None or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        shutil.chown(home, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = f"{home}/data"
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": home}
    subprocess.run([*as_user, initdb, "-D", data, "-U", "kiwi", "-A", "trust", "-E", "UTF8"], **quiet)
    subprocess.run([*as_user, pg_ctl, "-D", data, "-o", options, "-l", f"{home}/log", "-w", "start"], **quiet)
    yield f"postgresql://kiwi@127.0.0.1:{port}/postgres"
    subprocess.run([*as_user, pg_ctl, "-D", data, "-m", "immediate", "-w", "stop"], **quiet)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def open_store(database: str) -> Iterator[Callable[[], VoteStore]]:
    """Opens the votes of one study as often as asked, as several servers would."""
    study, opened = uuid.uuid4().hex[:16], []

    def opening() -> VoteStore:
        opened.append(VoteStore(database, study))
        return opened[-1]

    yield opening
    for store in opened:
        store.close()


def least_taken(choosing: Choosing) -> tuple[str, str, bool] | None:
    """A stand-in for the balanced choice: the first of the items that were assigned to fewer than four raters."""
    left = [item for item in ITEMS if item not in choosing.mine and choosing.taken.get(item, 0) < 4]
    return (min(left, key=lambda item: choosing.taken.get(item, 0)), "pair", False) if left else None


def test_a_vote_counts_once_survives_a_restart_and_can_be_undone(open_store: Callable[[], VoteStore]) -> None:
    store = open_store()
    rater = store.join("anna", 2).rater_id
    (first, second), _, _ = store.open_assignments(rater, 2, least_taken)
    assert store.vote(rater, first.assignment_id, 0, "left", 1.0)
    assert not store.vote(rater, first.assignment_id, 0, "left", 1.0)
    store.close()
    again = open_store()
    opened, voted, _ = again.open_assignments(rater, 1, least_taken)
    assert (opened, voted) == ([second], 1)
    assert again.undo(rater)
    with pytest.raises(VotingError) as refused:
        again.vote(rater, first.assignment_id, 0, "left", 1.0)
    assert refused.value.code == "stale"
    assert again.vote(rater, first.assignment_id, 1, "tie", 1.0)
    assert [vote.choice for vote in again.votes()] == ["tie"]
    assert again.undone() == 1


def test_raters_of_two_servers_at_once_never_see_an_item_more_often_than_asked(
    open_store: Callable[[], VoteStore],
) -> None:
    stores = [open_store(), open_store()]
    raters = [stores[number % 2].join(f"r{number}", 8).rater_id for number in range(8)]

    def rate(place: int) -> None:
        store, rater = stores[place % 2], raters[place]
        while (opened := store.open_assignments(rater, 1, least_taken)[0]) != []:
            store.vote(rater, opened[0].assignment_id, 0, "right", 1.0)

    threads = [threading.Thread(target=rate, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(vote.item_id for vote in stores[0].votes()) == dict.fromkeys(ITEMS, 4)


def test_a_name_is_given_to_one_of_many_who_ask_for_it_at_once(open_store: Callable[[], VoteStore]) -> None:
    stores = [open_store(), open_store()]
    outcomes: list[str] = []

    def join(place: int) -> None:
        try:
            stores[place % 2].join("anna", 8)
            outcomes.append("joined")
        except VotingError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=join, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"joined": 1, "name_taken": 5}


def test_a_database_that_is_away_is_named_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(KiwiError) as failed:
        VoteStore(f"postgresql://kiwi:sesame@127.0.0.1:{port}/votes", "study")
    assert str(port) in str(failed.value)
    assert "sesame" not in str(failed.value)
