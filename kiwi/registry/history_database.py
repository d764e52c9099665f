"""The database behind a registry's history: SQLite or PostgreSQL, one schema, triggers that keep it append-only.

Whoever changes a registry holds it: by a lock on a file beside SQLite, by an advisory lock of a session in PostgreSQL.
The system frees either when its holder dies. In PostgreSQL the holder writes through the very session that holds the
lock, so one that lost its connection can write nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from kiwi.errors import KiwiError, UsageError
from kiwi.tracking.server import Locked, locked

BUSY_SECONDS = 10.0
LOCK_NUMBER = int.from_bytes(b"kiwireg", "big")
DEAD_AFTER = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""Seconds until a PostgreSQL that vanished from the network is taken for away."""
DRIVERS = ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2")

_SQLITE_GUARDS = (
    "CREATE TRIGGER IF NOT EXISTS history_keeps BEFORE UPDATE ON history"
    " BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS history_stays BEFORE DELETE ON history"
    " BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END",
)
_POSTGRES_GUARDS = (
    "CREATE OR REPLACE FUNCTION kiwi_registry_append_only() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'the history is append-only'; END $$",
    "CREATE TRIGGER kiwi_registry_history_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON kiwi_registry_history"
    " FOR EACH STATEMENT EXECUTE FUNCTION kiwi_registry_append_only()",
)


class HistoryUnavailable(KiwiError):  # noqa: N818
    """The history is locked, away, unreadable or no database. What was begun is finished by the next change."""


class Tables:
    """The history and what is intended. In PostgreSQL they may lie beside MLflow's tables, so they bear our name."""

    def __init__(self, prefix: str) -> None:
        self.schema = sa.MetaData()
        number = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite counts up INTEGER keys alone
        self.history = sa.Table(
            f"{prefix}history",
            self.schema,
            sa.Column("id", number, primary_key=True),
            *(sa.Column(name, sa.Text, nullable=False) for name in ("at", "model", "action", "version")),
            sa.Column("champion_before", sa.Text),
            sa.Column("champion_after", sa.Text),
            *(sa.Column(name, sa.Text, nullable=False) for name in ("who", "why", "run")),
            sa.Column("forced", sa.Boolean, nullable=False),
            sa.Column("content", sa.Text, nullable=False, server_default=""),
            sa.Index(f"{prefix}history_model", "model", "id"),
            sqlite_autoincrement=True,
        )
        self.intents = sa.Table(
            f"{prefix}intents",
            self.schema,
            sa.Column("id", number, primary_key=True),
            sa.Column("model", sa.Text, nullable=False),
            sa.Column("plan", sa.Text, nullable=False),
            sqlite_autoincrement=True,
        )


SQLITE, POSTGRES = Tables(""), Tables("kiwi_registry_")


def registry_address(said: str) -> sa.URL:
    """The database that an address names: sqlite:///PATH or postgresql://…. Raises UsageError for another kind."""
    remedy = "give postgresql://USER:PASSWORD@HOST/DATABASE, or sqlite:///PATH"
    try:
        address = sa.make_url(said)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UsageError("the address of the registry's history is malformed", remedy) from error
    if address.drivername in DRIVERS:
        return address.set(drivername="postgresql+psycopg")
    if address.drivername != "sqlite" or not address.database:
        shown = address.render_as_string(hide_password=True)
        raise UsageError(f"the registry's history cannot be kept in {shown!r}", remedy)
    return address


class HistoryDatabase:
    """One history database. Every `transaction` is committed whole or not at all; a new one gets its tables first."""

    def __init__(self, address: sa.URL) -> None:
        self.address = address
        self.sqlite = address.drivername == "sqlite"
        self.tables = SQLITE if self.sqlite else POSTGRES
        self._holding: sa.Connection | None = None

    @property
    def name(self) -> str:
        """The database as it may be shown: without its password."""
        return str(self._path) if self.sqlite else self.address.render_as_string(hide_password=True)

    @property
    def _path(self) -> Path:
        return Path(self.address.database or "").absolute()

    @contextmanager
    def exclusively(self, seconds: float) -> Iterator[None]:
        """Holds the registry, between machines in PostgreSQL and between processes on SQLite. Raises Locked after
        `seconds`, HistoryUnavailable."""
        if self.sqlite:
            with self._told():
                self._path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self._path.with_name(f".{self._path.name}.lock"), seconds):
                yield
            return
        with self._told():
            connection = _engine(self.address).connect()
        try:
            with self._told():
                self._take(connection, seconds)
                with connection.begin():
                    self._prepare(connection)
            self._holding = connection
            yield
        finally:
            self._holding = None
            connection.invalidate()  # ends the session, which gives the lock back in whatever state it is
            connection.close()

    def check_held(self) -> None:
        """Raises HistoryUnavailable where the session that holds the lock is gone, and with it the lock."""
        if self._holding is not None:
            with self.transaction() as connection:
                connection.execute(sa.select(1))

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A connection in one transaction. Raises HistoryUnavailable."""
        with self._told():
            if (holding := self._holding) is not None:
                if holding.invalidated:  # SQLAlchemy would connect anew, without the lock
                    raise HistoryUnavailable(
                        f"the registry history {self.name}: the connection that held the lock was lost",
                        "run the command again; it finishes what was begun",
                    )
                with holding.begin():
                    yield holding
                return
            if self.sqlite:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            with _engine(self.address).begin() as connection:
                self._prepare(connection)
                yield connection

    def _prepare(self, connection: sa.Connection) -> None:
        """Makes what is missing: everything in a new database, the column `content` in one of an earlier kiwi."""
        if "content" in self._columns(connection):
            return
        if not self.sqlite:  # on SQLite the transaction itself keeps others out
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_NUMBER + 1)))
        columns = self._columns(connection)
        if "content" in columns:
            return
        if columns:
            connection.exec_driver_sql("ALTER TABLE history ADD COLUMN content TEXT NOT NULL DEFAULT ''")
            return
        self.tables.schema.create_all(connection)
        for guard in _SQLITE_GUARDS if self.sqlite else _POSTGRES_GUARDS:
            connection.exec_driver_sql(guard)

    def _columns(self, connection: sa.Connection) -> set[str]:
        if self.sqlite:
            return set(connection.exec_driver_sql("SELECT name FROM pragma_table_info('history')").scalars())
        asked = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:name) AND attnum > 0"
        return set(connection.execute(sa.text(asked), {"name": self.tables.history.name}).scalars())

    def _take(self, connection: sa.Connection, seconds: float) -> None:
        """Waits for the advisory lock; afterwards the session waits for rows and tables BUSY_SECONDS at most."""
        try:
            with connection.begin():
                connection.exec_driver_sql(f"SET lock_timeout = {int(seconds * 1000)}")
            with connection.begin():
                connection.execute(sa.select(sa.func.pg_advisory_lock(LOCK_NUMBER)))
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
                raise
            raise Locked(
                f"the registry at {self.name} is held by another promotion since more than {seconds:.0f} s",
                "try again later",
            ) from error
        with connection.begin():
            connection.exec_driver_sql(f"SET lock_timeout = {int(BUSY_SECONDS * 1000)}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what the database raises into HistoryUnavailable."""
        try:
            yield
        except ModuleNotFoundError as error:
            raise HistoryUnavailable(
                f"the registry history {self.name} needs package {error.name!r}", "pip install 'kiwi[postgres]'"
            ) from error
        except (sa.exc.SQLAlchemyError, OSError) as error:
            remedy = (
                "see that the file may be written and no other program locks it, or name another with KIWI_HISTORY"
                if self.sqlite
                else "see that PostgreSQL answers there and that its tables may be written (KIWI_REGISTRY_URL)"
            )
            raise HistoryUnavailable(
                f"the registry history {self.name}: {_cause(error)}", f"{remedy}; then run the command again"
            ) from error


@lru_cache(maxsize=16)
def _engine(address: sa.URL) -> sa.Engine:
    """An engine without a pool: connections are few and short, and none is inherited by a forked process."""
    if address.drivername != "sqlite":
        arguments = {name: value for name, value in DEAD_AFTER.items() if name not in address.query}
        return sa.create_engine(address, poolclass=sa.NullPool, connect_args=arguments)
    engine = sa.create_engine(address, poolclass=sa.NullPool, connect_args={"timeout": BUSY_SECONDS})

    # SQLAlchemy's recipe for SQLite: we begin transactions ourselves, and lock at once, so that none has to give up.
    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _cause(error: BaseException) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
