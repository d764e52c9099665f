"""The history's database on SQLite: where it lies, what it refuses, and that an earlier kiwi's is taken over."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from kiwi.errors import UsageError
from kiwi.registry import history_database
from kiwi.registry.history import Entry, History, HistoryUnavailable, history_address

EARLIER = """
CREATE TABLE history (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, model TEXT NOT NULL, action TEXT NOT NULL,
  version TEXT NOT NULL, champion_before TEXT, champion_after TEXT, who TEXT NOT NULL, why TEXT NOT NULL,
  run TEXT NOT NULL, forced INTEGER NOT NULL);
CREATE TABLE intents (id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, plan TEXT NOT NULL);
CREATE TRIGGER history_keeps BEFORE UPDATE ON history
  BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
INSERT INTO history VALUES (7, '2026-01-02', 'm', 'promote', '1', NULL, '1', 'ada', 'first', '', 1);
INSERT INTO intents VALUES (3, 'm', '{"moves": {}}');
"""


def entry(version: str = "1") -> Entry:
    return Entry("m", "hold", version, None, None, "gate", "x")


def sqlite_at(path: Path) -> sa.URL:
    return sa.URL.create("sqlite", database=str(path))


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KIWI_HISTORY", "KIWI_REGISTRY_URL", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_history_lies_where_it_is_named_else_beside_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert history_address("sqlite:////runs/mlflow.db").database == "/runs/registry.db"
    assert (history_address("postgresql://u:p@h/mlflow").host, history_address("postgresql://u@h/m").database) == (
        "h", "m",
    )  # fmt: skip
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert str(history_address("http://mlflow:5000").database).startswith("/state/kiwi/registry-")
    monkeypatch.setenv("KIWI_HISTORY", "/named/history.db")
    for uri in ("sqlite:////runs/mlflow.db", "http://mlflow:5000", "postgresql://h/mlflow"):
        assert history_address(uri).database == "/named/history.db"
    monkeypatch.setenv("KIWI_REGISTRY_URL", "postgresql://h/registry")
    assert history_address("sqlite:////runs/mlflow.db").drivername == "postgresql+psycopg"


@pytest.mark.parametrize("wrong", ["nonsense", "mysql://u:sesame@h/d", "sqlite://", "http://h/d"])
def test_an_address_of_no_such_database_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("KIWI_REGISTRY_URL", wrong)
    with pytest.raises(UsageError) as refused:
        history_address("http://mlflow:5000")
    assert "sesame" not in str(refused.value)


def test_the_history_of_an_earlier_kiwi_is_kept_and_goes_on(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.executescript(EARLIER)
    past = History(sqlite_at(tmp_path / "registry.db"))
    (former,) = past.entries("m")
    assert (former.id, former.who, former.forced, former.content) == (7, "ada", True, "")
    assert past.intents("m") == [(3, {"moves": {}})]
    assert past.append(entry("2"), intent=3).id == 8
    assert past.intents("m") == []


def test_an_entry_and_its_intent_are_settled_together_or_not_at_all(tmp_path: Path) -> None:
    past = History(sqlite_at(tmp_path / "registry.db"))
    intent = past.intend("m", {"moves": {}})
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute("CREATE TRIGGER stop BEFORE DELETE ON intents BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(HistoryUnavailable, match="disk full"):
        past.append(entry(), intent)
    assert past.entries() == []
    assert past.intents("m") == [(intent, {"moves": {}})]


def test_many_who_open_a_new_history_at_once_lose_no_line(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda n=n: History(sqlite_at(tmp_path / "new" / "registry.db")).append(entry(str(n))))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = History(sqlite_at(tmp_path / "new" / "registry.db")).entries()
    assert sorted(line.version for line in told) == [str(n) for n in range(8)]


def test_a_file_that_is_no_database_or_is_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.db").write_text("no database, and longer than a header of one hundred bytes " * 3)
    with pytest.raises(HistoryUnavailable, match="not a database"):
        History(sqlite_at(tmp_path / "text.db")).entries()
    path = tmp_path / "registry.db"
    History(sqlite_at(path)).append(entry())
    monkeypatch.setattr("kiwi.registry.history_database.BUSY_SECONDS", 0.1)
    history_database._engine.cache_clear()  # an engine keeps the time that it was made with
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(HistoryUnavailable, match="is locked"):
            History(sqlite_at(path)).append(entry())
        connection.execute("ROLLBACK")
    assert len(History(sqlite_at(path)).entries()) == 1
