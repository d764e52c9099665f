"""What is worth waking somebody for, and how it is said: a failed run, a held gate, another champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from kiwi.configuration import digest
from kiwi.operations.outcome import Outcome
from kiwi.operations.webhook import Format
from kiwi.tracking.redaction import redact, redacted

if TYPE_CHECKING:
    from kiwi.registry import Entry

Kind = Literal["run.failed", "gate.held", "model.promoted", "model.rolled_back", "test"]
SIGNS = {"run.failed": "🔴", "gate.held": "🟡", "model.promoted": "🟢", "model.rolled_back": "🟠", "test": "⚪"}
ABOUT = ("workspace", "preset", "status", "seconds", "report", "tracking_uri")
LONGEST_TEXT = 2000


@dataclass(frozen=True)
class Alert:
    """One event.

    Attributes:
        title: one line.
        facts: more lines, as (name, what).
        data: the same for programs.
        line: of the registry's history, where a person did it and no run.
    """

    kind: Kind
    title: str
    run: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    line: str = ""

    @property
    def key(self) -> str:
        """The same for the same event of the same run, or of the same line of the history."""
        return digest("alert", self.kind, self.run, self.title if self.kind == "test" else self.line)


def alerts_of(outcome: Outcome) -> list[Alert]:
    """The alerts that a run's end gives; none for a run that went well and decided nothing."""
    found = [_failed(outcome)] if outcome.status == "failed" else []
    if outcome.verdict == "promoted":
        found.append(_promoted(outcome))
    elif outcome.verdict in ("held", "waiting"):
        found.append(_held(outcome))
    return found


def alert_of_change(entry: Entry, overall: float | None, tracking_uri: str) -> Alert:
    """The alert of a promotion or rollback by hand: the pipeline's, with who did it in place of the run.

    `overall` is the new champion's recorded score; None where there is none.
    """
    kind: Kind = "model.rolled_back" if entry.action == "rollback" else "model.promoted"
    candidate = {"name": entry.model, "version": entry.version, "overall": overall}
    former = {"version": entry.champion_before} if entry.champion_before else None
    verb = "the champion again" if kind == "model.rolled_back" else "the champion"
    before = f", before it version {entry.champion_before}" if former else ""
    by = f"{entry.who}{', by force' if entry.forced else ''}"
    data = {
        **dict.fromkeys(ABOUT),
        "tracking_uri": tracking_uri,
        "model": candidate,
        "champion": former,
        "reasons": [entry.why] if entry.why else [],
        "who": entry.who,
        "forced": entry.forced,
    }
    title = f"{_named(candidate, entry.model)} is {verb}{before}"
    return Alert(kind, title, "", (("by", by), ("why", entry.why)), data, line=f"{entry.model} {entry.id} {entry.at}")


def test_alert() -> Alert:
    """What `kiwi doctor --test-alert` sends."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Alert("test", f"A test alert of kiwi, sent by `kiwi doctor` at {at}: alerts arrive")


def body(alert: Alert, form: Format) -> dict[str, Any]:
    """The alert as JSON: Slack's form (`text` alone), or ours, which has `text` too. Secrets are blacked out."""
    lines = [f"{SIGNS[alert.kind]} {alert.title}", *(f"{name}: {what}" for name, what in alert.facts if what)]
    text = redact("\n".join(lines))
    if len(text) > LONGEST_TEXT:
        text = text[: LONGEST_TEXT - 1] + "…"
    if form == "slack":
        return {"text": _for_slack(text)}
    told = redacted({"title": alert.title, "run": alert.run, **alert.data})
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"version": 1, "source": "kiwi", "id": alert.key, "event": alert.kind, "at": at, "text": text, **told}


def _for_slack(text: str) -> str:
    """Slack reads these three as markup: an error's text must not mention a channel or hide a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _failed(outcome: Outcome) -> Alert:
    broken = outcome.broken
    where = f" at {broken.label}" if broken else ""
    why = (broken.error if broken else "") or ("its process was killed" if broken and broken.status == "killed" else "")
    remedy = broken.remedy if broken else ""
    facts = (("why", why), ("what to do", remedy), *_places(outcome))
    data = {**_about(outcome), "task": broken and broken.label, "error": why, "remedy": remedy}
    return Alert("run.failed", f"Run {outcome.run} failed{where}", outcome.run, facts, data)


def _held(outcome: Outcome) -> Alert:
    who = _candidate(outcome)
    reasons = [str(reason) for reason in outcome.decision.get("reasons", ())]
    waiting = outcome.verdict == "waiting"
    title = f"{who} passed the gate and waits: {outcome.waits_for}" if waiting else f"{who} is held by the gate"
    facts = (("why", " ".join(reasons)), *_places(outcome))
    data = {
        **_about(outcome),
        **_judged(outcome),
        "reasons": reasons,
        "waits_for": outcome.waits_for if waiting else None,
    }
    return Alert("gate.held", title, outcome.run, facts, data)


def _promoted(outcome: Outcome) -> Alert:
    former = outcome.decision.get("champion") or {}
    before = f", before it version {former['version']}" if former.get("version") else ""
    reasons = [str(reason) for reason in outcome.decision.get("reasons", ())]
    facts = (("why", " ".join(reasons)), *_places(outcome))
    data = {**_about(outcome), **_judged(outcome), "reasons": reasons}
    return Alert("model.promoted", f"{_candidate(outcome)} is the champion{before}", outcome.run, facts, data)


def _candidate(outcome: Outcome) -> str:
    return _named(outcome.decision.get("candidate") or {}, outcome.model_name)


def _named(candidate: Mapping[str, Any], otherwise: str) -> str:
    name = candidate.get("name") or otherwise
    overall = candidate.get("overall")
    scored = f" ({overall:.3g} overall)" if isinstance(overall, (int, float)) else ""
    return f"{name} version {candidate.get('version', '?')}{scored}"


def _about(outcome: Outcome) -> dict[str, Any]:
    return {
        "workspace": outcome.workspace,
        "preset": outcome.preset,
        "status": outcome.status,
        "seconds": round(outcome.finished - outcome.started, 1),
        "report": outcome.report,
        "tracking_uri": outcome.tracking_uri,
    }


def _judged(outcome: Outcome) -> dict[str, Any]:
    return {"model": outcome.decision.get("candidate"), "champion": outcome.decision.get("champion")}


def _places(outcome: Outcome) -> tuple[tuple[str, str], ...]:
    return ("work folder", outcome.workspace), ("report", outcome.report or "")
