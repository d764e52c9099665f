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
from kiwi.registry.approvals import NotApproved, NotPromoted, Policy, approval, approved_by, checked_person
from kiwi.registry.history import Entry, History, default_who
from kiwi.registry.lost_aliases import told_of_alias
from kiwi.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    ModelVersion,
    RegistryError,
    alias_map,
    checked_alias,
    checked_content,
    checked_name,
    show,
    versions,
)
from kiwi.tracking.server import answers, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANY = "*"


class RolledBack(NotPromoted):
    """The version was the champion and was rolled back; promoting it again has to be meant."""


class ChampionChanged(RegistryError):  # noqa: N818
    """Another promotion came between the decision and this one."""


def history(uri: str, name: str) -> list[Entry]:
    """Every change of a model's aliases and every gate decision, oldest first."""
    return History.of(uri).entries(checked_name(name))


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
        force: promote a version that the gate did not let through, that was decided against another champion or
            that was rolled back. It replaces no approval.
        run: the attempt that promotes, for the history.
        expected_champion: the champion's version that was compared with (None: there was none). Where none is given,
            the champion that the gate compared with, as recorded on the version.

    Raises NotPromoted (NotApproved, RolledBack), ChampionChanged, RegistryError, Locked, TrackingUnavailable.
    """
    if force and not why.strip():
        raise UsageError("a forced promotion needs a reason", "add --reason with a sentence for the history")
    wanted = show(uri, name, version)
    content = checked_content(uri, wanted) if Policy.of(wanted).required else ""
    with changing(uri, name) as change:
        before = change.aliases.get(CHAMPION)
        target = change.version(wanted.version)
        if before == target.version:
            return target
        earned = _earned(change, target, before, expected_champion, force)
        _check_approved(change, target, content)
        moves: dict[str, str | None] = {CHAMPION: target.version, PREVIOUS: before}
        if change.aliases.get(CHALLENGER) == target.version:
            moves[CHALLENGER] = None
        why = why or next(iter(_reasons(target)), "")
        who = who or default_who()
        entry = Entry(name, "promote", target.version, before, target.version, who, why, run, not earned, content)
        change.make(moves, entry)
        return change.version(target.version)


def _earned(change: Change, target: ModelVersion, before: str | None, expected: str | None, force: bool) -> bool:
    """Whether the gate let the version through against the champion of this moment. Raises where not, but for
    `force`; a champion that changed since `expected` was named always raises."""
    name, remedy = change.name, "or promote with --force --reason TEXT"
    if expected != ANY and before != expected:
        raise ChampionChanged(
            f"{name}: the champion is version {before} by now, the decision was made against {expected}",
            "decide again",
        )
    if target.tags.get("kiwi.decision") != "promote":
        said = " ".join(_reasons(target)) or "the gate has not decided on it"
        refusal: RegistryError = NotPromoted(f"{name} version {target.version} is not promoted: {said}", remedy)
    elif (undone := change.rolled_back(target.version)) is not None:
        why = f": {undone.why}" if undone.why else ""
        refusal = RolledBack(
            f"{name} version {target.version} was rolled back by {undone.who} on {undone.at[:10]}{why}", remedy
        )
    elif expected == ANY and target.tags.get("kiwi.compared_version", before or "none") != (before or "none"):
        against = target.tags["kiwi.compared_version"].replace("none", "no champion")
        refusal = ChampionChanged(
            f"{name} version {target.version} was decided on against {against}, the champion is {before or 'none'} now",
            f"train and judge it against that one with `kiwi run`, {remedy}",
        )
    else:
        return True
    if not force:
        raise refusal
    return False


def _reasons(version: ModelVersion) -> list[str]:
    said: list[str] = json.loads(version.tags.get("kiwi.reasons", "[]"))
    return said


def _check_approved(change: Change, target: ModelVersion, content: str) -> None:
    """Raises NotApproved where fewer than the required people approved these very files."""
    policy = Policy.of(target)
    if not policy.required:
        return
    if content != target.tags.get("model.digest"):
        raise RegistryError(f"{change.name} version {target.version} changed while it was promoted", "promote again")
    names = approved_by(change.past.entries(change.name), target)
    if len(names) < policy.required:
        raise NotApproved(
            f"{change.name} version {target.version} has {len(names)} of {policy.required} approvals"
            + (f" ({', '.join(names)})" if names else ""),
            f"`kiwi model approve {target.version} --as NAME`" + policy.who(),
        )


def approve(uri: str, name: str, version: str, *, who: str, why: str = "") -> tuple[tuple[str, ...], int]:
    """Enters `who`'s approval of a version's very files in the history; returns who approved, and how many must.

    Repeating it changes nothing. Raises UsageError for a name that may not approve, RegistryError where the version
    or its files are gone or changed.
    """
    who = checked_person(who)
    wanted = show(uri, name, version)
    Policy.of(wanted).check(who)
    content = checked_content(uri, wanted)
    with changing(uri, name) as change:
        target = change.version(wanted.version)
        if content != target.tags.get("model.digest"):
            raise RegistryError(f"{name} version {target.version} changed while it was approved", "approve again")
        entries = change.past.entries(name)
        if approval(entries, target, who) is None:
            now = change.aliases.get(CHAMPION)
            user = default_who()
            noted = " ".join(part for part in (why.strip(), "" if user == who else f"[entered by {user}]") if part)
            entries.append(change.note(Entry(name, "approve", target.version, now, now, who, noted, content=content)))
        return approved_by(entries, target), Policy.of(target).required


def rollback(uri: str, name: str, *, why: str = "", who: str | None = None) -> ModelVersion:
    """Makes `previous` the champion again; `previous` becomes the champion before that one, where the history knows
    one. Raises RegistryError where there is no previous champion."""
    checked_name(name)
    with changing(uri, name) as change:
        before, target = change.aliases.get(CHAMPION), change.aliases.get(PREVIOUS)
        if target is None:
            raise RegistryError(
                f"{name} has no previous champion to go back to: {change.lost(PREVIOUS)}",
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
        before = change.aliases.get(CHAMPION)
        change.delete(Entry(name, "delete", target.version, before, before, who or default_who(), why))


@contextmanager
def changing(uri: str, name: str) -> Iterator[Change]:
    """Holds the registry for one change of a model, after finishing what a crash left and noting what others did."""
    client = connect(uri)
    past = History.of(uri)
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

    def lost(self, alias: str) -> str:
        """Why an alias points at no version."""
        known = {found.version for found in versions(self.client, self.name)}
        return told_of_alias(self.past.entries(self.name), alias, known)

    def make(self, moves: dict[str, str | None], entry: Entry) -> Entry:
        """Moves aliases (None removes one) and enters it in the history, or both later, never one alone."""
        plan = {"moves": {checked_alias(alias): version for alias, version in moves.items()}, "entry": entry.as_dict()}
        return self._carry_out(self.past.intend(self.name, plan), moves, entry)

    def delete(self, entry: Entry) -> Entry:
        """Deletes the entry's version and enters it, or both later."""
        intent = self.past.intend(self.name, {"moves": {}, "entry": entry.as_dict()})
        return self._carry_out(intent, {}, entry)

    def note(self, entry: Entry) -> Entry:
        """Enters what moved no alias, such as a hold, in the history."""
        return self._tell(self.past.append(entry))

    def finish_intents(self) -> None:
        """Does what was intended and not finished, or says why it cannot be done any more."""
        for intent, plan in self.past.intents(self.name):
            entry = Entry(**plan["entry"])
            known = {version.version for version in versions(self.client, self.name)}
            if entry.version in known or entry.action == "delete":
                moves = {alias: version if version in known else None for alias, version in plan["moves"].items()}
                self._carry_out(intent, moves, entry)
                continue
            why = f"version {entry.version} was deleted before its {entry.action} was finished"
            now = self.aliases.get(CHAMPION)
            given_up = Entry(
                self.name, "abandoned", entry.version, entry.champion_before, now, entry.who, why, entry.run
            )
            self._tell(self.past.append(given_up, intent))

    def note_outside_moves(self) -> None:
        """Where the champion is not the one the history left, somebody moved the alias by hand: that is history."""
        entries = self.past.entries(self.name)
        left = entries[-1].champion_after if entries else None
        now = self.aliases.get(CHAMPION)
        if now != left:
            why = "the alias was moved outside kiwi"
            self.note(Entry(self.name, "outside", now or "", left, now, "unknown", why))

    def rolled_back(self, version: str) -> Entry | None:
        """The rollback that took the championship from `version`, where nothing made it champion since."""
        for entry in reversed(self.past.entries(self.name)):
            if entry.champion_before == version and entry.champion_after != version:
                return entry if entry.action == "rollback" else None
        return None

    def champion_before(self, version: str) -> str | None:
        """The champion that `version` replaced when it was last promoted, where that version still exists."""
        for entry in reversed(self.past.entries(self.name)):
            if entry.action in ("promote", "outside") and entry.champion_after == version:
                known = {found.version for found in versions(self.client, self.name)}
                return entry.champion_before if entry.champion_before in known else None
        return None

    def _carry_out(self, intent: int, moves: dict[str, str | None], entry: Entry) -> Entry:
        if entry.action == "delete":
            self._delete(entry.version)
        for alias, version in moves.items():
            self.past.check_held()
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
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_registered_model_tag(self.name, f"kiwi.history.{entry.id:06d}", said[:4000])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the whole model was deleted outside kiwi
                raise
        return entry

    def _delete(self, version: str) -> None:
        from mlflow.exceptions import MlflowException

        self.past.check_held()
        try:
            self.client.delete_model_version(self.name, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # a crash came after it was deleted
                raise
