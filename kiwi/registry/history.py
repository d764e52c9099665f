"""The append-only history of a registry: who moved which alias when, from what to what, and why.

It is a small SQLite database beside the tracking database, because MLflow keeps none (mlflow/mlflow#2169). A change
is written down as an intent first, then made in MLflow, then entered in the history in the transaction that removes
the intent: a crash in between is finished by whoever comes next.
"""

from __future__ import annotations

import getpass
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kiwi.configuration import digest
from kiwi.errors import KiwiError
from kiwi.tracking.server import database_path, locked

SCHEMA = """
CREATE TABLE IF NOT EXISTS history (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, model TEXT NOT NULL, action TEXT NOT NULL,
  version TEXT NOT NULL, champion_before TEXT, champion_after TEXT, who TEXT NOT NULL, why TEXT NOT NULL,
  run TEXT NOT NULL, forced INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS history_model ON history (model, id);
CREATE TABLE IF NOT EXISTS intents (id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, plan TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS history_keeps BEFORE UPDATE ON history
  BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
CREATE TRIGGER IF NOT EXISTS history_stays BEFORE DELETE ON history
  BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
"""


class HistoryUnavailable(KiwiError):  # noqa: N818
    """The history database is locked, unreadable or no database; nothing was changed."""


@dataclass(frozen=True)
class Entry:
    """One line of the history. `at` is UTC in ISO 8601; champions are versions as text, None where there was none."""

    model: str
    action: str
    version: str
    champion_before: str | None
    champion_after: str | None
    who: str
    why: str
    run: str = ""
    forced: bool = False
    at: str = ""
    id: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def history_path(uri: str) -> Path:
    """KIWI_HISTORY, else beside a SQLite tracking database, else one file a server under the user's state folder."""
    if named := os.environ.get("KIWI_HISTORY"):
        return Path(named).absolute()
    if database := database_path(uri):
        return database.with_name("registry.db")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "kiwi" / f"registry-{digest(uri)}.db"


def default_who() -> str:
    """KIWI_USER, else the user's name, else the numeric id."""
    try:
        return os.environ.get("KIWI_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


class History:
    """The history database of one registry. Every method is one transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def exclusively(self, seconds: float = 180.0) -> Iterator[None]:
        """Holds the registry for one change at a time, between processes. Raises Locked after `seconds`."""
        with locked(self.path.with_name(f".{self.path.name}.lock"), seconds):
            yield

    def intend(self, model: str, plan: dict[str, Any]) -> int:
        """Writes down what is about to be done; returns its number."""
        with self._transaction() as connection:
            said = json.dumps(plan, ensure_ascii=False)
            row = connection.execute("INSERT INTO intents (model, plan) VALUES (?, ?)", (model, said))
            return int(row.lastrowid or 0)

    def intents(self, model: str) -> list[tuple[int, dict[str, Any]]]:
        """What was intended and never settled, oldest first."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT id, plan FROM intents WHERE model = ? ORDER BY id", (model,)).fetchall()
        return [(int(number), json.loads(plan)) for number, plan in rows]

    def append(self, entry: Entry, intent: int | None = None) -> Entry:
        """Enters one line, and settles its intent in the same transaction."""
        at = entry.at or datetime.now(UTC).isoformat(timespec="milliseconds")
        said = {**entry.as_dict(), "at": at}
        said.pop("id")
        names = ", ".join(said)
        marks = ", ".join("?" for _ in said)
        with self._transaction() as connection:
            row = connection.execute(f"INSERT INTO history ({names}) VALUES ({marks})", tuple(said.values()))
            if intent is not None:
                connection.execute("DELETE FROM intents WHERE id = ?", (intent,))
            return Entry(**said, id=int(row.lastrowid or 0))

    def entries(self, model: str | None = None) -> list[Entry]:
        """All lines, oldest first."""
        names = [field.name for field in fields(Entry)]
        asked, values = ("WHERE model = ?", (model,)) if model else ("", ())
        with self._transaction() as connection:
            rows = connection.execute(f"SELECT {', '.join(names)} FROM history {asked} ORDER BY id", values).fetchall()
        told = [dict(zip(names, row, strict=True)) for row in rows]
        return [Entry(**{**said, "forced": bool(said["forced"])}) for said in told]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=10.0, isolation_level=None)) as connection:
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'history_stays'").fetchone():
                    connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise HistoryUnavailable(
                f"the registry history {self.path}: {error}",
                "nothing was changed; make the file writable, or name another with KIWI_HISTORY",
            ) from error
