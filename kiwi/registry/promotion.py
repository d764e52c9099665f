"""Moving the aliases of a registered model: promote, roll back, delete, and the history each of them leaves.

One change at a time holds the registry; what it intends is written down before MLflow is touched, so simultaneous
promotions leave one champion and a crash in the middle is finished by the next change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kiwi.errors import UsageError
from kiwi.registry.history import Entry, History, default_who, history_path
from kiwi.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    ModelVersion,
    RegistryError,
    alias_map,
    checked_name,
    show,
    versions,
)
from kiwi.tracking.server import answers, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANY = "*"


class NotPromoted(RegistryError):  # noqa: N818
    """The gate did not let the version through, and it was not forced."""


class ChampionChanged(RegistryError):  # noqa: N818
    """Another promotion came between the decision and this one."""


def history(uri: str, name: str) -> list[Entry]:
    """Every change of a model's aliases and every gate decision, oldest first."""
    return History(history_path(uri)).entries(checked_name(name))


def promote(
    uri: str,
    name: str,
    version: str,
    *,
    why: str = "",
    who: str | None = None,
    force: bool = False,
    run: str = "",
    expected_champion: str | None = ANY,
) -> ModelVersion:
    """Makes a version (number or alias) the champion; the former one becomes `previous`. Repeating changes nothing.

    Args:
        why: a sentence for the history; needed with `force`.
        who: who promotes; the user where None.
        force: promote a version that the gate did not let through.
        run: the attempt that promotes, for the history.
        expected_champion: the champion's version that was compared with (None: there was none).

    Raises NotPromoted, ChampionChanged, RegistryError, Locked, TrackingUnavailable.
    """
    if force and not why.strip():
        raise UsageError("a forced promotion needs a reason", "add --reason with a sentence for the history")
    wanted = show(uri, name, version)
    with changing(uri, name) as change:
        before = change.aliases.get(CHAMPION)
        target = change.version(wanted.version)
        if before == target.version:
            return target
        if expected_champion != ANY and before != expected_champion:
            raise ChampionChanged(
                f"{name}: the champion is version {before} by now, the decision was made against {expected_champion}",
                "decide again",
            )
        decision = target.tags.get("kiwi.decision")
        if decision != "promote" and not force:
            said = "; ".join(json.loads(target.tags.get("kiwi.reasons", "[]"))) or "the gate has not decided on it"
            raise NotPromoted(
                f"{name} version {target.version} is not promoted: {said}", "or promote with --force --reason TEXT"
            )
        moves: dict[str, str | None] = {CHAMPION: target.version, PREVIOUS: before}
        if change.aliases.get(CHALLENGER) == target.version:
            moves[CHALLENGER] = None
        why = why or "; ".join(json.loads(target.tags.get("kiwi.reasons", "[]"))[:1])
        who = who or default_who()
        entry = Entry(
            name, "promote", target.version, before, target.version, who, why, run, force and decision != "promote"
        )
        change.make(moves, entry)
        return change.version(target.version)


def rollback(uri: str, name: str, *, why: str = "", who: str | None = None) -> ModelVersion:
    """Makes `previous` the champion again; `previous` becomes the champion before that one, where the history knows
    one. Raises RegistryError where there is no previous champion."""
    checked_name(name)
    with changing(uri, name) as change:
        before, target = change.aliases.get(CHAMPION), change.aliases.get(PREVIOUS)
        if target is None:
            raise RegistryError(
                f"{name} has no previous champion to go back to",
                f"`kiwi model history --model {name}` shows what there was",
            )
        change.version(target)
        earlier = change.champion_before(target)
        entry = Entry(name, "rollback", target, before, target, who or default_who(), why)
        change.make({CHAMPION: target, PREVIOUS: earlier if earlier != before else None}, entry)
        return change.version(target)


def delete_version(uri: str, name: str, version: str, *, why: str = "", who: str | None = None) -> None:
    """Deletes a version that no alias points to. Raises RegistryError where one does."""
    wanted = show(uri, name, version)
    with changing(uri, name) as change:
        target = change.version(wanted.version)
        if target.aliases:
            raise RegistryError(
                f"{name} version {target.version} is the {' and '.join(target.aliases)}, and is not deleted",
                "promote another version first",
            )
        change.client.delete_model_version(name, target.version)
        before = change.aliases.get(CHAMPION)
        change.note(Entry(name, "delete", target.version, before, before, who or default_who(), why))


@contextmanager
def changing(uri: str, name: str) -> Iterator[Change]:
    """Holds the registry for one change of a model, after finishing what a crash left and noting what others did."""
    client = connect(uri)
    past = History(history_path(uri))
    with past.exclusively(), answers(uri):
        change = Change(client, past, name)
        change.finish_intents()
        change.note_outside_moves()
        yield change


class Change:
    """The registry of one model while it is held: its aliases now, and the one way to move them."""

    def __init__(self, client: MlflowClient, past: History, name: str) -> None:
        self.client = client
        self.past = past
        self.name = name
        self.aliases = alias_map(client, name)

    def version(self, number: str) -> ModelVersion:
        found = {version.version: version for version in versions(self.client, self.name)}
        if number not in found:
            raise RegistryError(
                f"{self.name} version {number} was deleted",
                f"`kiwi model list --model {self.name}` shows what there is",
            )
        return found[number]

    def make(self, moves: dict[str, str | None], entry: Entry) -> Entry:
        """Moves aliases (None removes one) and enters it in the history, or both later, never one alone."""
        intent = self.past.intend(self.name, {"moves": moves, "entry": entry.as_dict()})
        return self._carry_out(intent, moves, entry)

    def note(self, entry: Entry) -> Entry:
        """Enters what moved no alias, such as a hold, in the history."""
        return self._tell(self.past.append(entry))

    def finish_intents(self) -> None:
        for intent, plan in self.past.intents(self.name):
            self._carry_out(intent, plan["moves"], Entry(**plan["entry"]))

    def note_outside_moves(self) -> None:
        """Where the champion is not the one the history left, somebody moved the alias by hand: that is history."""
        if not self.aliases:
            return
        entries = self.past.entries(self.name)
        left = entries[-1].champion_after if entries else None
        now = self.aliases.get(CHAMPION)
        if now != left:
            why = "the alias was moved outside kiwi"
            self.note(Entry(self.name, "outside", now or "", left, now, "unknown", why))

    def champion_before(self, version: str) -> str | None:
        """The champion that `version` replaced when it was last promoted, where that version still exists."""
        for entry in reversed(self.past.entries(self.name)):
            if entry.action in ("promote", "outside") and entry.champion_after == version:
                known = {found.version for found in versions(self.client, self.name)}
                return entry.champion_before if entry.champion_before in known else None
        return None

    def _carry_out(self, intent: int, moves: dict[str, str | None], entry: Entry) -> Entry:
        for alias, version in moves.items():
            if version is None and alias in self.aliases:
                self.client.delete_registered_model_alias(self.name, alias)
            elif version is not None and self.aliases.get(alias) != version:
                self.client.set_registered_model_alias(self.name, alias, version)
        self.aliases = alias_map(self.client, self.name)
        return self._tell(self.past.append(entry, intent))

    def _tell(self, entry: Entry) -> Entry:
        """Shows the newest line in MLflow too, on the model; the database stays the record."""
        said = f"{entry.at} {entry.who}: {entry.action} version {entry.version}"
        said += f" (champion {entry.champion_before} to {entry.champion_after}) {entry.why}"
        if self.aliases:
            self.client.set_registered_model_tag(self.name, f"kiwi.history.{entry.id:06d}", said[:4000])
        return entry
