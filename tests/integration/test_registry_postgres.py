"""The registry on a real PostgreSQL: MLflow, the history and the lock of promotions in one database.

Uses KIWI_TEST_POSTGRES (an address of an empty database) or a server of its own where `initdb` is installed; skipped
with the reason where neither is there.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from kiwi.registry import HistoryUnavailable, history, list_versions, promote, rollback, show
from kiwi.registry.history import Entry, History
from kiwi.registry.history_database import registry_address
from kiwi.tracking.server import Locked, connect
from tests.integration.test_preference_postgres import database

pytest.importorskip("psycopg", reason="psycopg is not installed")

__all__ = ["database"]

NAME = "kiwi-edit-tiny"
PROMOTING = """
import sys, threading
from kiwi.registry import promote
failed = []
def work(number):
    try: promote(sys.argv[1], sys.argv[2], number, who='w' + number, why='race')
    except BaseException as error: failed.append(repr(error))
threads = [threading.Thread(target=work, args=(number,)) for number in sys.argv[3:]]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
sys.exit('; '.join(failed) or 0)
"""
DYING = """
import os, signal, sys
from mlflow import MlflowClient
from kiwi.registry import promote
real = MlflowClient.set_registered_model_alias
def die(self, name, alias, version):
    if sys.argv[4] == 'after': real(self, name, alias, version)
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.set_registered_model_alias = die
promote(sys.argv[1], sys.argv[2], sys.argv[3], why='killed')
"""
HOLDING = """
import sys, time
from kiwi.registry.history import History
with History.of(sys.argv[1]).exclusively():
    print('held', flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def own_database(database: str) -> Iterator[str]:
    """A database of this file alone, with MLflow's tables in it: their migration takes seconds."""
    name = f"kiwi_{uuid.uuid4().hex[:12]}"
    server = sa.create_engine(registry_address(database), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    address = registry_address(database).set(database=name).render_as_string(hide_password=False)
    connect(address)
    yield address
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def uri(own_database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """MLflow with twenty versions of a model and no history yet."""
    for name in ("KIWI_HISTORY", "KIWI_REGISTRY_URL"):
        monkeypatch.delenv(name, raising=False)
    engine = sa.create_engine(own_database, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for table in ("history", "intents"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS kiwi_registry_{table}")
    client = connect(own_database)
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    client.create_registered_model(NAME)
    for _ in range(20):
        client.create_model_version(NAME, source=str(tmp_path), tags={"kiwi.decision": "promote"})
    return own_database


def test_twenty_simultaneous_promotions_leave_one_champion_and_a_complete_history(uri: str) -> None:
    numbers, processes = [str(number) for number in range(1, 21)], 4
    running = [
        subprocess.Popen([sys.executable, "-c", PROMOTING, uri, NAME, *numbers[index::processes]])
        for index in range(processes)
    ]
    assert [process.wait(timeout=240) for process in running] == [0] * processes
    told = history(uri, NAME)
    assert sorted(entry.version for entry in told) == sorted(numbers)
    assert [entry.champion_before for entry in told] == [None, *(entry.version for entry in told[:-1])]
    assert [entry.id for entry in told] == sorted(entry.id for entry in told)
    found = list_versions(uri, NAME)
    assert [version.version for version in found if "champion" in version.aliases] == [told[-1].version]
    assert [version.version for version in found if "previous" in version.aliases] == [told[-2].version]


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_promotion_killed_in_the_middle_is_finished_by_the_next_and_holds_nobody_up(uri: str, point: str) -> None:
    promote(uri, NAME, "1", why="first")
    killed = subprocess.run([sys.executable, "-c", DYING, uri, NAME, "2", point], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert rollback(uri, NAME, why="back").version == "1"
    assert [(entry.action, entry.champion_before, entry.champion_after) for entry in history(uri, NAME)] == [
        ("promote", None, "1"), ("promote", "1", "2"), ("rollback", "2", "1"),
    ]  # fmt: skip


def test_a_registry_held_elsewhere_is_waited_for_and_free_when_the_holder_is_killed(uri: str) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, uri], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Locked, match="held by another promotion"), History.of(uri).exclusively(0.3):
        pass
    freeing = threading.Timer(0.5, holder.kill)
    freeing.start()
    assert promote(uri, NAME, "3", why="after").version == "3"
    holder.wait()


def test_a_holder_whose_connection_was_cut_writes_nothing_more(uri: str) -> None:
    past = History.of(uri)
    past.append(Entry(NAME, "hold", "1", None, None, "gate", "x"))
    engine = sa.create_engine(uri, poolclass=sa.NullPool)
    with past.exclusively(5.0):
        with engine.begin() as connection:
            ours = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            cut = f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND {ours}"
            connection.exec_driver_sql(cut)
        for _ in range(2):  # the second time SQLAlchemy would connect anew, without the lock
            with pytest.raises(HistoryUnavailable):
                past.check_held()
        with pytest.raises(HistoryUnavailable, match="was lost"):
            past.append(Entry(NAME, "promote", "1", None, "1", "late", "x"))
        with History.of(uri).exclusively(5.0):
            pass
    assert [entry.action for entry in history(uri, NAME)] == ["hold"]


def test_the_history_cannot_be_rewritten(uri: str) -> None:
    promote(uri, NAME, "1", why="x")
    engine = sa.create_engine(uri, poolclass=sa.NullPool)
    table = "kiwi_registry_history"
    for statement in (f"UPDATE {table} SET who = 'eve'", f"DELETE FROM {table}", f"TRUNCATE {table}"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
            connection.exec_driver_sql(statement)
    assert [entry.why for entry in history(uri, NAME)] == ["x"]


def test_a_history_table_that_is_locked_is_said_and_no_alias_is_moved(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(uri, NAME, "1", why="x")
    monkeypatch.setattr("kiwi.registry.history_database.BUSY_SECONDS", 0.3)
    engine = sa.create_engine(uri, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE kiwi_registry_intents IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(HistoryUnavailable, match="lock timeout"):
            promote(uri, NAME, "2", why="y")
    assert show(uri, NAME).version == "1"


def test_many_who_open_a_new_history_at_once_make_it_once(uri: str) -> None:
    failed: list[Exception] = []

    def enter(place: int) -> None:
        try:
            History.of(uri).append(Entry(f"model{place}", "hold", "1", None, None, "gate", "x"))
        except Exception as error:  # noqa: BLE001 - whatever one thread meets is the finding
            failed.append(error)

    threads = [threading.Thread(target=enter, args=(place,)) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(History.of(uri).entries()) == 12


def test_the_history_of_another_mlflow_lives_where_the_environment_says(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(tracking)
    client.create_registered_model(NAME)
    client.create_model_version(NAME, source=str(tmp_path), tags={"kiwi.decision": "promote"})
    monkeypatch.setenv("KIWI_REGISTRY_URL", re.sub(r"^postgresql\+psycopg", "postgresql", uri))
    promote(tracking, NAME, "1", why="x")
    assert [entry.why for entry in history(tracking, NAME)] == ["x"]
    assert not (tmp_path / "registry.db").exists()


def test_a_database_that_is_away_is_named_without_its_password_and_nothing_is_moved(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("KIWI_REGISTRY_URL", f"postgresql://kiwi:sesame@127.0.0.1:{port}/registry")
    with pytest.raises(HistoryUnavailable) as failed:
        promote(uri, NAME, "1", why="x")
    assert str(port) in str(failed.value)
    assert "sesame" not in str(failed.value)
    assert all(version.aliases == () for version in list_versions(uri, NAME))
