"""The append-only history of a registry: who moved which alias when, from what to what, and why.

It is a database of its own, because MLflow keeps none (mlflow/mlflow#2169): SQLite beside a SQLite tracking database,
PostgreSQL where several machines share a registry. A change is written down as an intent first, then made in MLflow,
then entered in the history in the transaction that removes the intent: a crash in between is finished by whoever comes
next.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from kiwi.configuration import digest
from kiwi.registry.history_database import HistoryDatabase, HistoryUnavailable, registry_address
from kiwi.tracking.server import database_path

__all__ = ["Entry", "History", "HistoryUnavailable", "default_who", "history_address", "history_path"]


@dataclass(frozen=True)
class Entry:
    """One line of the history. `at` is UTC in ISO 8601; champions are versions as text, None where there was none;
    `content` is the digest of the model's files that an approval is for."""

    model: str
    action: str
    version: str
    champion_before: str | None
    champion_after: str | None
    who: str
    why: str
    run: str = ""
    forced: bool = False
    content: str = ""
    at: str = ""
    id: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def history_address(uri: str) -> sa.URL:
    """The history's database: KIWI_REGISTRY_URL, else KIWI_HISTORY (a file), else beside MLflow's own database."""
    if named := os.environ.get("KIWI_REGISTRY_URL", "").strip():
        return registry_address(named)
    if not os.environ.get("KIWI_HISTORY") and uri.startswith("postgres"):
        return registry_address(uri)
    return sa.URL.create("sqlite", database=str(history_path(uri)))


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
    """The history of one registry. Every method is one transaction."""

    def __init__(self, address: sa.URL) -> None:
        self.database = HistoryDatabase(address)
        self._history, self._intents = self.database.tables.history, self.database.tables.intents

    @classmethod
    def of(cls, uri: str) -> History:
        """The history that belongs to an MLflow address."""
        return cls(history_address(uri))

    @contextmanager
    def exclusively(self, seconds: float = 180.0) -> Iterator[None]:
        """Holds the registry for one change at a time. Raises Locked after `seconds`."""
        with self.database.exclusively(seconds):
            yield

    def check_held(self) -> None:
        """Raises HistoryUnavailable where the registry is no longer held, because the database was lost meanwhile."""
        self.database.check_held()

    def intend(self, model: str, plan: dict[str, Any]) -> int:
        """Writes down what is about to be done; returns its number."""
        row = self._intents.insert().values(model=model, plan=json.dumps(plan, ensure_ascii=False))
        with self.database.transaction() as connection:
            return _number(connection.execute(row))

    def intents(self, model: str) -> list[tuple[int, dict[str, Any]]]:
        """What was intended and never settled, oldest first."""
        table = self._intents
        asked = sa.select(table.c.id, table.c.plan).where(table.c.model == model).order_by(table.c.id)
        with self.database.transaction() as connection:
            rows = connection.execute(asked).all()
        return [(int(row.id), json.loads(row.plan)) for row in rows]

    def append(self, entry: Entry, intent: int | None = None) -> Entry:
        """Enters one line, and settles its intent in the same transaction."""
        said = entry.as_dict()
        said["at"] = entry.at or datetime.now(UTC).isoformat(timespec="milliseconds")
        said.pop("id")
        with self.database.transaction() as connection:
            number = _number(connection.execute(self._history.insert().values(**said)))
            if intent is not None:
                connection.execute(self._intents.delete().where(self._intents.c.id == intent))
        return Entry(**said, id=number)

    def entries(self, model: str | None = None) -> list[Entry]:
        """All lines, oldest first."""
        table = self._history
        asked = sa.select(*(table.c[field.name] for field in fields(Entry))).order_by(table.c.id)
        with self.database.transaction() as connection:
            rows = connection.execute(asked if model is None else asked.where(table.c.model == model)).mappings().all()
        return [Entry(**row) for row in rows]


def _number(inserted: sa.CursorResult[Any]) -> int:
    key = inserted.inserted_primary_key
    return int(key[0]) if key else 0
