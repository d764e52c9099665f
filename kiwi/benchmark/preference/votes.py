"""Where votes are kept: SQLite or PostgreSQL, one schema, every change in one transaction.

A vote belongs to an assignment, and the database admits one vote to each: repeating a request changes nothing. What is
undone goes to a history, never lost.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from kiwi.benchmark.preference.choices import CHOICES, Vote
from kiwi.errors import KiwiError, UsageError

ABANDONED_AFTER = 3600.0  # seconds after which an assignment without a vote may go to someone else as well

_schema = sa.MetaData()
_rater = sa.Table(
    "preference_rater",
    _schema,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("study", sa.String(64), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("joined_at", sa.Double, nullable=False),
    sa.UniqueConstraint("study", "name"),
)
_assignment = sa.Table(
    "preference_assignment",
    _schema,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("study", sa.String(64), nullable=False, index=True),
    sa.Column("rater", sa.ForeignKey("preference_rater.id"), nullable=False, index=True),
    sa.Column("item", sa.String(400), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("flipped", sa.Boolean, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("issued_at", sa.Double, nullable=False),
    sa.UniqueConstraint("rater", "item"),
    sa.UniqueConstraint("rater", "place"),
)
_vote = sa.Table(
    "preference_vote",
    _schema,
    sa.Column("assignment", sa.ForeignKey("preference_assignment.id"), primary_key=True),
    sa.Column("choice", sa.String(16), nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("given_at", sa.Double, nullable=False),
)
_withdrawn = sa.Table(
    "preference_withdrawn",
    _schema,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("assignment", sa.ForeignKey("preference_assignment.id"), nullable=False),
    sa.Column("choice", sa.String(16), nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("given_at", sa.Double, nullable=False),
    sa.Column("withdrawn_at", sa.Double, nullable=False),
)


class VotingError(KiwiError):
    """A vote or a name that cannot be accepted; `code` is what the page is told."""

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.code = code


@dataclass(frozen=True)
class Rater:
    """Someone who votes; `name` is the pseudonym they chose or were given."""

    rater_id: str
    name: str


@dataclass(frozen=True)
class Assignment:
    """An item shown to a rater. `round` goes up when a vote is undone, so that an old request cannot vote again."""

    assignment_id: str
    item_id: str
    kind: str
    place: int
    flipped: bool
    round: int
    issued_at: float


@dataclass(frozen=True)
class Choosing:
    """What the choice of a next item may depend on: the rater's items so far, and how often each was assigned."""

    mine: tuple[str, ...]
    taken: dict[str, int]
    issued: dict[str, int]


def votes_address(votes: str) -> sa.URL:
    """The database that `votes` names: a path of a SQLite file (made absolute), `sqlite:///…` or `postgresql://…`.

    Raises UsageError for another kind of database.
    """
    try:
        address = sa.make_url(votes) if "://" in votes else sa.URL.create("sqlite", database=votes)
    except sa.exc.ArgumentError as error:
        raise UsageError("the address of the votes is malformed", "give a path, or postgresql://…") from error
    if address.drivername in ("postgresql", "postgres"):
        address = address.set(drivername="postgresql+psycopg")
    if address.drivername not in ("sqlite", "postgresql+psycopg"):
        raise UsageError(f"votes cannot be kept in {address.drivername!r}", "give a path, or postgresql://…")
    path = _file(address)
    return address if path is None else address.set(database=str(path.absolute()))


def _file(address: sa.URL) -> Path | None:
    """SQLite's file; None where the votes are in no file."""
    in_file = address.drivername == "sqlite" and address.database and address.database != ":memory:"
    return Path(str(address.database)) if in_file else None


class VoteStore:
    """The votes of one study. Safe for several threads, and for several servers on one PostgreSQL database."""

    def __init__(self, votes: str, study_id: str, new: bool = True) -> None:
        """Opens, and makes the tables where they are not; with new=False no file that is not there.

        Raises KiwiError where the database cannot be used.
        """
        self.address = votes_address(votes)
        self.study_id = study_id
        path = _file(self.address)
        if not new and path is not None and not path.is_file():
            raise KiwiError(f"there are no votes at {path}", "name the file that holds them with --votes")
        try:
            self._engine = _engine(self.address)
            with self._transaction() as connection:
                _schema.create_all(connection)
        except sa.exc.SQLAlchemyError as error:
            remedy = "see that the database is there and may be written, or give another one with --votes"
            raise KiwiError(f"the votes cannot be opened at {self.name}: {_cause(error)}", remedy) from error
        except ModuleNotFoundError as error:
            raise KiwiError(f"package {error.name!r} is not installed", "pip install 'psycopg[binary]'") from error

    @property
    def name(self) -> str:
        """The database without its password."""
        return self.address.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """One writer at a time in a study: SQLite locks its file, PostgreSQL a number that stands for the study."""
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                lock = int.from_bytes(self.study_id.encode()[:7].ljust(7), "big")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
            yield connection

    def join(self, name: str, at_most: int) -> Rater:
        """A new rater. Raises VotingError: name_taken, or full where `at_most` raters are there."""
        with self._transaction() as connection:
            names = connection.scalars(sa.select(_rater.c.name).where(_rater.c.study == self.study_id)).all()
            if name.casefold() in {each.casefold() for each in names}:
                raise VotingError("name_taken", f"someone votes as {name!r} already", "take another name")
            if len(names) >= at_most:
                raise VotingError("full", f"all {at_most} raters have joined", "ask who runs the study")
            rater = Rater(secrets.token_hex(16), name)
            connection.execute(
                _rater.insert().values(id=rater.rater_id, study=self.study_id, name=name, joined_at=time.time())
            )
        return rater

    def invite(self, name: str) -> Rater:
        """The rater of that name, made where there is none."""
        with self._transaction() as connection:
            found = connection.execute(
                sa.select(_rater.c.id, _rater.c.name).where(_rater.c.study == self.study_id, _rater.c.name == name)
            ).first()
            if found is not None:
                return Rater(found.id, found.name)
            rater = Rater(secrets.token_hex(16), name)
            connection.execute(
                _rater.insert().values(id=rater.rater_id, study=self.study_id, name=name, joined_at=time.time())
            )
        return rater

    def rater(self, rater_id: str) -> Rater | None:
        with self._engine.connect() as connection:
            found = connection.execute(
                sa.select(_rater.c.id, _rater.c.name).where(_rater.c.study == self.study_id, _rater.c.id == rater_id)
            ).first()
        return Rater(found.id, found.name) if found is not None else None

    def raters(self) -> list[Rater]:
        """All who joined, in order."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(_rater.c.id, _rater.c.name)
                .where(_rater.c.study == self.study_id)
                .order_by(_rater.c.joined_at, _rater.c.name)
            ).all()
        return [Rater(row.id, row.name) for row in rows]

    def open_assignments(
        self, rater_id: str, at_most: int, choose: Callable[[Choosing], tuple[str, str, bool] | None]
    ) -> tuple[list[Assignment], int, Choosing]:
        """The rater's assignments without a vote, filled up to `at_most`; the number of votes; and what is assigned.

        `choose` gives (item, kind, flipped) for a new assignment, or None for no more. The same open assignments come
        back each time, also after a restart of the browser or of the server.
        """
        with self._transaction() as connection:
            rows = connection.execute(
                sa.select(_assignment, _vote.c.assignment.label("voted"))
                .select_from(_assignment.outerjoin(_vote, _vote.c.assignment == _assignment.c.id))
                .where(_assignment.c.rater == rater_id)
                .order_by(_assignment.c.place)
            ).all()
            opened = [_as_assignment(row) for row in rows if row.voted is None][:at_most]
            choosing = self._choosing(connection, rater_id, [row.item for row in rows])
            while len(opened) < at_most and (chosen := choose(choosing)) is not None:
                item, kind, flipped = chosen
                new = Assignment(secrets.token_hex(16), item, kind, len(choosing.mine), flipped, 0, time.time())
                connection.execute(_assignment.insert().values(**_row(new), study=self.study_id, rater=rater_id))
                opened.append(new)
                choosing = Choosing(
                    (*choosing.mine, item),
                    {**choosing.taken, item: choosing.taken.get(item, 0) + 1},
                    {**choosing.issued, item: choosing.issued.get(item, 0) + 1},
                )
        return opened, sum(row.voted is not None for row in rows), choosing

    def _choosing(self, connection: sa.Connection, rater_id: str, mine: list[str]) -> Choosing:
        joined = _assignment.outerjoin(_vote, _vote.c.assignment == _assignment.c.id)
        counted = _vote.c.assignment.is_not(None) | (_assignment.c.issued_at > time.time() - ABANDONED_AFTER)
        rows = connection.execute(
            sa.select(
                _assignment.c.item,
                sa.func.count().label("issued"),
                sa.func.sum(sa.case((counted, 1), else_=0)).label("taken"),
            )
            .select_from(joined)
            .where(_assignment.c.study == self.study_id)
            .group_by(_assignment.c.item)
        ).all()
        return Choosing(
            tuple(mine), {row.item: int(row.taken) for row in rows}, {row.item: int(row.issued) for row in rows}
        )

    def vote(self, rater_id: str, assignment_id: str, round_: int, choice: str, seconds: float) -> bool:
        """Keeps a vote; False where the same vote was there already.

        Raises VotingError: unassigned for an item that is not this rater's, stale for a vote from before an undo,
        already_voted for another choice than the one kept, bad_vote for what is no choice.
        """
        if choice not in CHOICES:
            raise VotingError("bad_vote", f"{choice!r} is no choice", f"choices: {', '.join(CHOICES)}")
        now = time.time()
        with self._transaction() as connection:
            row = connection.execute(
                sa.select(_assignment.c.round, _assignment.c.issued_at, _vote.c.choice)
                .select_from(_assignment.outerjoin(_vote, _vote.c.assignment == _assignment.c.id))
                .where(_assignment.c.id == assignment_id, _assignment.c.rater == rater_id)
                .where(_assignment.c.study == self.study_id)
            ).first()
            if row is None:
                raise VotingError("unassigned", "this pair was not given to this rater", "load the page again")
            if row.round != round_:
                raise VotingError("stale", "this vote is from before an undo", "load the page again")
            if row.choice is not None:
                if row.choice == choice:
                    return False
                raise VotingError("already_voted", "this pair has a vote already", "undo it, then vote again")
            used = max(0.0, min(seconds, now - row.issued_at))
            connection.execute(
                _vote.insert().values(assignment=assignment_id, choice=choice, seconds=used, given_at=now)
            )
        return True

    def undo(self, rater_id: str) -> bool:
        """Takes the rater's last vote back, into the history; False where there is none."""
        with self._transaction() as connection:
            row = connection.execute(
                sa.select(_vote)
                .select_from(_vote.join(_assignment, _vote.c.assignment == _assignment.c.id))
                .where(_assignment.c.rater == rater_id, _assignment.c.study == self.study_id)
                .order_by(_vote.c.given_at.desc(), _assignment.c.place.desc())
                .limit(1)
            ).first()
            if row is None:
                return False
            connection.execute(_withdrawn.insert().values(**row._asdict(), withdrawn_at=time.time()))
            connection.execute(_vote.delete().where(_vote.c.assignment == row.assignment))
            connection.execute(
                _assignment.update()
                .where(_assignment.c.id == row.assignment)
                .values(round=_assignment.c.round + 1, issued_at=time.time())
            )
        return True

    def votes(self) -> list[Vote]:
        """All votes of the study, in the order they were given."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(
                    _rater.c.name,
                    _assignment.c.item,
                    _assignment.c.kind,
                    _assignment.c.flipped,
                    _vote.c.choice,
                    _vote.c.seconds,
                    _vote.c.given_at,
                )
                .select_from(
                    _vote.join(_assignment, _vote.c.assignment == _assignment.c.id).join(
                        _rater, _assignment.c.rater == _rater.c.id
                    )
                )
                .where(_assignment.c.study == self.study_id)
                .order_by(_vote.c.given_at, _vote.c.assignment)
            ).all()
        return [Vote(*row) for row in rows]

    def undone(self) -> int:
        """How many votes were taken back."""
        with self._engine.connect() as connection:
            joined = _withdrawn.join(_assignment, _withdrawn.c.assignment == _assignment.c.id)
            count = sa.select(sa.func.count()).select_from(joined).where(_assignment.c.study == self.study_id)
            return int(connection.scalar(count) or 0)


def _engine(address: sa.URL) -> sa.Engine:
    if address.drivername != "sqlite":
        return sa.create_engine(address, pool_pre_ping=True)
    path = _file(address)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(address, connect_args={"timeout": 30})

    # SQLAlchemy's recipe for SQLite: we begin transactions ourselves, and lock at once, so that none has to give up.
    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _cause(error: sa.exc.SQLAlchemyError) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _as_assignment(row: Any) -> Assignment:
    return Assignment(row.id, row.item, row.kind, row.place, row.flipped, row.round, row.issued_at)


def _row(assignment: Assignment) -> dict[str, Any]:
    return {
        "id": assignment.assignment_id,
        "item": assignment.item_id,
        "kind": assignment.kind,
        "place": assignment.place,
        "flipped": assignment.flipped,
        "round": assignment.round,
        "issued_at": assignment.issued_at,
    }
