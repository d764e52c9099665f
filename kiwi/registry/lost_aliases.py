"""Why an alias points at no version: what the history says of the one that had it last."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kiwi.registry.history import Entry


def told_of_alias(entries: Sequence[Entry], alias: str, known: Collection[str]) -> str:
    """What became of `challenger`, `champion` or `previous`, as a clause.

    Args:
        entries: the model's history, oldest first. known: the versions that are still there.
    """
    if alias == "previous":
        return _previous(entries, known)
    if alias == "champion":
        last = next((entry.champion_after for entry in reversed(entries) if entry.champion_after), None)
        return _became(entries, last, known) if last else "none was promoted yet"
    newest = next((entry for entry in reversed(entries) if entry.action == "register"), None)
    if newest is None:
        return "none was registered"
    promoted = [entry for entry in entries if entry.action == "promote" and entry.version == newest.version]
    if promoted and newest.version in known:
        return f"the newest candidate, version {newest.version}, was promoted on {promoted[-1].at[:10]}"
    return _became(entries, newest.version, known)


def _previous(entries: Sequence[Entry], known: Collection[str]) -> str:
    moves = [entry for entry in entries if entry.champion_before != entry.champion_after]
    if not moves:
        return "none was promoted yet"
    last, now = moves[-1], moves[-1].champion_after
    if last.action == "rollback":
        before = [entry for entry in moves if entry.action in ("promote", "outside") and entry.champion_after == now]
        version = before[-1].champion_before if before else None
    else:
        version = last.champion_before
    return _became(entries, version, known) if version else f"version {now} was the first champion"


def _became(entries: Sequence[Entry], version: str, known: Collection[str]) -> str:
    if version in known:
        return f"it was version {version}, and the alias was removed outside kiwi"
    deleted = next((entry for entry in reversed(entries) if (entry.action, entry.version) == ("delete", version)), None)
    if deleted is None:
        return f"it was version {version}, which was deleted outside kiwi"
    why = f": {deleted.why}" if deleted.why else ""
    return f"it was version {version}, which {deleted.who} deleted on {deleted.at[:10]}{why}"
