"""The end of a run, and a champion changed by hand, made known: alerts once each, and a run's figures.

What goes wrong here is told and fails neither.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.operations import figures
from kiwi.operations.alerts import Alert, alert_of_change, alerts_of, body
from kiwi.operations.outcome import Outcome, outcome_of
from kiwi.operations.webhook import Webhook, post
from kiwi.tracking.logs import log
from kiwi.tracking.records import attempt_of
from kiwi.workspace import Workspace, read_json, write_json

if TYPE_CHECKING:
    from kiwi.registry import Entry

BREAKS = (KiwiError, OSError, ImportError, ValueError, KeyError, TypeError)
"""What broken files, a service that is away, and wrong settings raise: told, and the run goes on."""


def close_and_announce(configuration: RunConfiguration, state: str, *, whole: bool = True) -> None:
    """The exit task: `close_run`, then `announce`, also where closing failed, which makes the run a failed one."""
    from kiwi.runs import close_run

    status: Literal["finished", "failed"] = "failed"
    try:
        close_run(configuration, state, whole=whole)
        status = "finished" if state == "SUCCEEDED" else "failed"
    finally:
        announce(configuration, status)


def announce(configuration: RunConfiguration, status: Literal["finished", "failed"]) -> None:
    """Alerts and figures of a run that has ended; what goes wrong here is said on stderr and changes nothing.

    An alert that was taken is noted beside the task records, so a closing task that is tried again repeats none.
    """
    try:
        outcome = outcome_of(configuration, status)
    except BREAKS as error:
        _say("neither alerts nor figures of this run", error)
        return
    book = Workspace.of(configuration).records / attempt_of(configuration) / "alerts.json"
    for what, tell in (
        ("alerts were not sent", partial(_send_alerts, outcome, book)),
        ("figures were not written", partial(figures.write_file, outcome)),
        ("figures were not pushed", partial(figures.push, outcome)),
    ):
        try:
            tell()
        except BREAKS as error:
            _say(what, error)


def announce_change(entry: Entry, overall: float | None, tracking_uri: str) -> None:
    """The alert of a promotion or rollback by hand, which is done by then; nothing where no webhook is set."""
    try:
        webhook = Webhook.told()
        if webhook is not None:
            _send(webhook, alert_of_change(entry, overall, tracking_uri))
    except BREAKS as error:
        _say("the alert was not sent", error)


def _send_alerts(outcome: Outcome, book: Path) -> None:
    webhook = Webhook.told()
    if webhook is None:
        return
    sent: dict[str, str] = read_json(book) if book.is_file() else {}
    for alert in alerts_of(outcome):
        if alert.key not in sent:
            _send(webhook, alert)
            write_json(book, sent := {**sent, alert.key: alert.kind})


def _send(webhook: Webhook, alert: Alert) -> None:
    post(webhook, body(alert, webhook.format), alert.key)
    log("alert", alert=alert.kind, message=alert.title)


def _say(what: str, error: Exception) -> None:
    """Of an error that is not ours only the kind is shown: its text may hold an address."""
    said = error.message if isinstance(error, KiwiError) else type(error).__name__
    if isinstance(error, (json.JSONDecodeError, KeyError)):
        said = f"the work folder's files are broken ({type(error).__name__})"
    log("announce", level="warning", message=f"{what}: {said}")
    print(f"kiwi: {what}: {said}", file=sys.stderr, flush=True)
