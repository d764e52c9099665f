"""`kiwi doctor`: what is installed, reachable, and missing, here and in the cluster, with what to do about it."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kiwi.errors import UsageError

if TYPE_CHECKING:
    from kiwi.doctor import Check

TARGETS = {"client": ("core",), "cpu": ("core", "data", "train"), "gpu": ("core", "data", "train")}
MARKS = {"ok": "ok     ", "missing": "not set", "failed": "FAILED "}
PATIENCE = "3"


def doctor(
    cluster: Annotated[bool, typer.Option("--cluster", help="What a cluster needs has to be set up, too.")] = False,
    workdir: Annotated[Path, typer.Option(help="Where runs are kept: is there room?")] = Path("runs"),
    tracking_uri: Annotated[str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow.")] = None,
    test_alert: Annotated[bool, typer.Option("--test-alert", help="Send an alert, to see whether it arrives.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Checks packages, disk, services and cluster. Exit code 1 where something failed, or is missing and needed."""
    from kiwi.doctor import cluster as far
    from kiwi.doctor import examine, healthy, installed, services

    os.environ.setdefault("KIWI_STORAGE_PATIENCE", PATIENCE)
    groups = _groups()
    questions = [
        *installed.questions(groups, workdir),
        *services.questions(tracking_uri, needed=cluster),
        *far.questions(needed=cluster),
    ]
    checks = examine(questions)
    if test_alert:
        checks.append(_sent_alert())
    if as_json:
        said = {"python": platform.python_version(), "ok": healthy(checks), "checks": [it.as_dict() for it in checks]}
        print(json.dumps(said | _former(checks), ensure_ascii=False))
    else:
        _print(checks)
    sys.stdout.flush()
    sys.exit(0 if healthy(checks) else 1)


def _groups() -> tuple[str, ...]:
    """The package groups that are needed: an image says by KIWI_IMAGE_TARGET what it is for."""
    target = os.environ.get("KIWI_IMAGE_TARGET", "cpu")
    if target not in TARGETS:
        raise UsageError(f"KIWI_IMAGE_TARGET={target!r} is no image of kiwi", f"one of {', '.join(TARGETS)}, or unset")
    return TARGETS[target]


def _sent_alert() -> Check:
    from kiwi.doctor import Check
    from kiwi.operations.alerts import body, test_alert
    from kiwi.operations.webhook import ADDRESS, AlertError, Webhook, post

    name, alert = "test alert", test_alert()
    try:
        webhook = Webhook.told()
        if webhook is None:
            return Check("service", name, "missing", f"{ADDRESS} is not set", "set it to the webhook", needed=True)
        post(webhook, body(alert, webhook.format), alert.key)
    except (AlertError, UsageError) as error:
        return Check("service", name, "failed", error.message, error.remedy)
    return Check("service", name, "ok", f"{webhook.shown} took it; did it arrive?")


def _former(checks: list[Check]) -> dict[str, object]:
    """Packages and programs by name, for scripts that read them."""
    from kiwi.doctor.installed import GROUPS, PROGRAMS, installed

    found = {check.name: check for check in checks}
    return {
        "packages": {group: {name: installed(name) for name in names} for group, names in GROUPS.items()},
        "programs": {name: found[name].said if found[name].state == "ok" else None for name in PROGRAMS},
    }


def _print(checks: list[Check]) -> None:
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    width = max(len(check.name) for check in checks)
    for check in checks:
        shown = check.as_dict()
        mark = "MISSING" if check.bad and check.state == "missing" else MARKS[check.state]
        print(f"{mark} {check.name:<{width}}  {shown['said']}")
        if check.state != "ok" and shown["remedy"]:
            print(f"{'':{len(MARKS['ok']) + width + 3}}{shown['remedy']}")
    bad = [check.name for check in checks if check.bad]
    unset = sum(check.state == "missing" and not check.bad for check in checks)
    rest = f" ({unset} not set up, and not needed here)" if unset else ""
    print(f"{'All is well' if not bad else 'To mend: ' + ', '.join(bad)}{rest}")
