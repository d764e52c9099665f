"""Approvals: how many people must agree before a version is promoted, who may, and who did.

A version carries the policy of the configuration that trained it. An approval is an entry of the history for the digest
of the model's files: it counts for those files alone. Names are given, not proven; the history also says which user
entered them.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kiwi.configuration import GateSettings
from kiwi.errors import UsageError
from kiwi.registry.history import Entry
from kiwi.registry.versions import ModelVersion, RegistryError

LONGEST_NAME = 80


class NotPromoted(RegistryError):  # noqa: N818
    """The gate did not let the version through, and it was not forced."""


class NotApproved(NotPromoted):
    """The gate let the version through, and too few people approved it so far."""


@dataclass(frozen=True)
class Policy:
    """How many different people must approve a version, and who may (empty: anyone but `trainer`)."""

    required: int
    approvers: tuple[str, ...]
    trainer: str

    @classmethod
    def of(cls, version: ModelVersion) -> Policy:
        tags = version.tags
        return cls(
            int(tags.get("kiwi.approvals", "0")),
            tuple(json.loads(tags.get("kiwi.approvers", "[]"))),
            tags.get("kiwi.trained_by", ""),
        )

    def may(self, who: str) -> bool:
        """Whoever trained a version does not approve it, also where the list names them."""
        listed = not self.approvers or same(who) in map(same, self.approvers)
        return listed and same(who) != same(self.trainer)

    def check(self, who: str) -> None:
        if self.may(who):
            return
        if same(who) == same(self.trainer):
            raise UsageError(f"{who!r} trained this version, and cannot approve it", "ask somebody else" + self.who())
        raise UsageError(f"{who!r} is not among those who may approve this version", "ask one of them" + self.who())

    def who(self) -> str:
        may = [name for name in self.approvers if self.may(name)]
        return f"; may approve: {', '.join(may)}" if may else ""


def policy_tags(gate: GateSettings, trainer: str) -> dict[str, Any]:
    """What a version carries of the policy that it was trained under: who trained it, also where no approval is asked
    for."""
    if not gate.approvals:
        return {"kiwi.trained_by": trainer}
    return {
        "kiwi.approvals": gate.approvals,
        "kiwi.approvers": json.dumps(list(gate.approvers), ensure_ascii=False),
        "kiwi.trained_by": trainer,
    }


def checked_person(name: str) -> str:
    """A name as the history shows it. Raises UsageError for one that is empty, too long or has control characters."""
    shown = " ".join(unicodedata.normalize("NFKC", name).split())
    if not shown or len(shown) > LONGEST_NAME or not shown.isprintable():
        raise UsageError(f"{name!r} is no name of a person", f"1 to {LONGEST_NAME} printable characters, with --as")
    return shown


def same(name: str) -> str:
    """What two spellings of one name have in common."""
    return " ".join(unicodedata.normalize("NFKC", name).split()).casefold()


def approval(entries: Sequence[Entry], version: ModelVersion, who: str) -> Entry | None:
    """`who`'s approval of the version's present files."""
    wanted = ("approve", version.version, version.tags.get("model.digest"), same(who))
    found = (e for e in entries if e.content and (e.action, e.version, e.content, same(e.who)) == wanted)
    return next(found, None)


def approved_by(entries: Sequence[Entry], version: ModelVersion) -> tuple[str, ...]:
    """The different people whose approval counts for the version's present files, in order."""
    policy, found = Policy.of(version), dict[str, str]()
    for entry in entries:
        if entry.action == "approve" and policy.may(entry.who) and approval([entry], version, entry.who):
            found.setdefault(same(entry.who), entry.who)
    return tuple(found.values())
