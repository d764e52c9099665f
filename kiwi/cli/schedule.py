"""`kiwi schedule`: recurring runs on a cluster, made to agree with infra/schedules.yaml."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kiwi.errors import UsageError

if TYPE_CHECKING:
    from kiwi.cluster.schedules import Change, Desired, Schedule

app = typer.Typer(help="Recurring runs: apply, list.", no_args_is_help=True)

FILE = Path("infra") / "schedules.yaml"
SIGNS = {"create": "+", "replace": "~", "remove": "-", "keep": " "}
Host = Annotated[str | None, typer.Option(envvar="KIWI_KFP_HOST", help="The pipelines API's address.")]


@app.callback()
def schedule() -> None:
    """Recurring runs: apply, list."""


@app.command()
def apply(
    file: Annotated[Path, typer.Option(help="The schedules.")] = FILE,
    image: Annotated[
        str | None, typer.Option(envvar="KIWI_IMAGE", help="REPOSITORY@sha256:… or REPOSITORY:<git SHA>.")
    ] = None,
    host: Host = None,
    namespace: Annotated[str | None, typer.Option(help="Where to remove from, if the file names none.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Creates, replaces and removes recurring runs until the cluster agrees with the file."""
    from kiwi.cluster import schedules
    from kiwi.cluster.api import Address, Cluster
    from pipelines.compiling import check_pipeline

    wanted = schedules.read_schedules(file, check_pipeline)
    address = Address.told(host)
    desired = _desired(wanted, image)
    place = _namespace(desired, namespace)
    cluster = Cluster(address, place)
    changes = schedules.differences(desired, cluster.recurring_runs())
    if not dry_run:
        schedules.apply(cluster, changes, said=lambda change: None if as_json else _print(change))
    if as_json:
        rows = [{"change": change.kind, "name": change.name, "why": change.why} for change in changes]
        print(json.dumps({"namespace": place, "applied": not dry_run, "changes": rows}))
    elif dry_run:
        for change in changes:
            _print(change)
        print("nothing was changed: --dry-run", file=sys.stderr)


def _desired(wanted: list[Schedule], image: str | None) -> list[Desired]:
    """Every schedule compiled, before anything is touched; each pipeline, profile and list of stages once."""
    from kiwi.cluster.schedules import Desired, configuration_of
    from kiwi.cluster.submitting import compiled
    from pipelines.compiling import check_pipeline
    from pipelines.placing import place_of

    done: dict[tuple[str, ...], dict[str, object]] = {}
    desired = []
    for one in wanted:
        configuration = configuration_of(one)
        name = check_pipeline(one.pipeline)
        key = (name, one.profile, *(stage.name for stage in configuration.stages))
        if key not in done:
            done[key] = compiled(name, one.profile, image, configuration)
        desired.append(Desired(one, done[key], configuration, place_of(one.profile)))
    return desired


def _namespace(desired: list[Desired], named: str | None) -> str:
    spaces = sorted({one.place.namespace for one in desired} | ({named} if named else set()))
    if len(spaces) != 1:
        said = ", ".join(spaces) or "none"
        raise UsageError(
            f"one namespace is reconciled at a time, the file names {said}", "give --namespace, or a file each"
        )
    return spaces[0]


def _print(change: Change) -> None:
    print(f"{SIGNS[change.kind]} {change.kind:<8} {change.name}  ({change.why})", flush=True)


@app.command("list")
def list_(
    profile: Annotated[str, typer.Option(help="A cluster's profile, for its namespace.")] = "prod",
    host: Host = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Lists the namespace's recurring runs, ours and others'."""
    from kiwi.cluster.api import Address, Cluster
    from kiwi.cluster.schedules import MARK
    from pipelines.placing import place_of

    rows = []
    for run in Cluster(Address.told(host), place_of(profile).namespace).recurring_runs():
        mark = MARK.match(run.description or "")
        cron = run.trigger.cron_schedule.cron if run.trigger and run.trigger.cron_schedule else None
        rows.append(
            {
                "name": run.display_name,
                "id": run.recurring_run_id,
                "cron": cron,
                "status": run.status,
                "hash": mark[1] if mark else None,
                "ours": bool(mark),
            }
        )
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        whose = row["hash"] or "not made by kiwi"
        print(f"{row['name']:<28} {row['cron'] or 'periodic':<18} {row['status'] or '':<9} {whose}")
    if not rows:
        print("no recurring runs")
