"""infra/schedules.yaml is the truth about recurring runs: read and checked whole, then the cluster is made to agree.

The API cannot change a recurring run, so one that differs is stopped, made anew, and then deleted: it never fires
twice, and a kill in between leaves something that the next `apply` completes. Ours bear a hash of all that they are
made from in their description; what does not is somebody else's and is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from kiwi.cluster.api import Cluster
from kiwi.cluster.cron import check_cron
from kiwi.cluster.submitting import Place
from kiwi.configuration import RunConfiguration, Settings, digest
from kiwi.errors import UsageError

MARK = re.compile(r"^kiwi-schedule ([0-9a-f]{16})(?:$|\n)")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
Kind = Literal["create", "replace", "remove", "keep"]


class Schedule(Settings):
    """One recurring run.

    Attributes:
        cron: six fields, seconds first, UTC.
        catchup: run every missed time after an outage; else only the newest of them.
        concurrency: runs of it at once; a time that comes meanwhile waits.
        set: overrides of the preset, as `--set`.
    """

    name: str
    pipeline: str
    profile: str
    cron: str
    preset: str
    workspace: str
    tracking_uri: str
    description: str = ""
    source: tuple[str, ...] = ()
    set: dict[str, Any] = {}
    catchup: bool = False
    concurrency: int = Field(1, ge=1, le=10)
    enabled: bool = True


@dataclass(frozen=True)
class Desired:
    """A schedule with everything that it is made from; `spec` is the compiled pipeline."""

    schedule: Schedule
    spec: dict[str, Any]
    configuration: RunConfiguration
    place: Place

    @property
    def hash(self) -> str:
        said = self.schedule.model_dump(mode="json")
        return digest(said, self.spec, self.configuration.canonical(), vars(self.place))


@dataclass(frozen=True)
class Change:
    """What is to be done about one name. `stale` are the ids of recurring runs that have to go."""

    kind: Kind
    name: str
    why: str
    desired: Desired | None = None
    stale: tuple[str, ...] = ()


def read_schedules(path: Path, known: Callable[[str], object]) -> list[Schedule]:
    """All schedules of the file, every one checked before anything is touched.

    Args:
        known: raises UsageError for a pipeline that there is not.

    Raises:
        UsageError: naming the schedule and what is wrong with it.
    """
    try:
        said = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"schedules {path}: {error.strerror}", "name the file with --file") from None
    except yaml.YAMLError as error:
        raise UsageError(f"schedules {path} is not YAML: {' '.join(str(error).split())}", "mend the file") from None
    if not isinstance(said, dict) or set(said) != {"schedules"} or not isinstance(said["schedules"], list):
        raise UsageError(
            f"schedules {path}: not a list under the one key `schedules`", "write `schedules: []` for none"
        )
    schedules = [_schedule(path, number, entry) for number, entry in enumerate(said["schedules"], 1)]
    for schedule in schedules:
        _checked(path, schedule, known)
    names = [schedule.name for schedule in schedules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"schedules {path}: the name {twice[0]!r} is there twice", "a name is a schedule's identity")
    return schedules


def _schedule(path: Path, number: int, entry: Any) -> Schedule:
    try:
        return Schedule.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "entry"
        name = entry.get("name") if isinstance(entry, dict) else None
        raise UsageError(
            f"schedules {path}: schedule {name or number!r}: {where}: {first['msg']}",
            f"settings: {', '.join(Schedule.model_fields)}",
        ) from None


def _checked(path: Path, schedule: Schedule, known: Callable[[str], object]) -> None:
    try:
        if not NAME.fullmatch(schedule.name):
            raise UsageError(f"{schedule.name!r} is no name", "small letters, digits and '-', at most 63 of them")
        if not schedule.workspace.startswith("/"):
            raise UsageError(f"workspace {schedule.workspace!r}", "a folder from / on the volume that all pods mount")
        check_cron(schedule.cron)
        known(schedule.pipeline)
    except UsageError as error:
        said = f"schedules {path}: schedule {schedule.name!r}: {error.message}"
        raise UsageError(said, error.remedy) from None


def configuration_of(schedule: Schedule) -> RunConfiguration:
    """The run's configuration, as `kiwi run` would build it. Raises UsageError for what the preset does not know."""
    import json

    from kiwi.presets import build

    overrides = [f"{key}={json.dumps(value)}" for key, value in schedule.set.items()]
    return build(
        schedule.preset,
        workspace=Path(schedule.workspace),
        tracking_uri=schedule.tracking_uri,
        collections=schedule.source,
        overrides=overrides,
    )


def differences(desired: Sequence[Desired], present: Iterable[Any]) -> list[Change]:
    """What has to be done so that the cluster agrees, by name; `present` are the API's recurring runs.

    Raises UsageError where somebody else's recurring run has the name of one of ours.
    """
    ours: dict[str, list[Any]] = {}
    others: set[str] = set()
    for run in present:
        if MARK.match(run.description or ""):
            ours.setdefault(run.display_name, []).append(run)
        else:
            others.add(run.display_name)
    taken = sorted(others & {wanted.schedule.name for wanted in desired})
    if taken:
        raise UsageError(
            f"there is a recurring run {taken[0]!r} that kiwi did not make", "delete it, or name the schedule otherwise"
        )
    changes = [_change(wanted, ours.pop(wanted.schedule.name, [])) for wanted in desired]
    gone = [
        Change("remove", name, "not in the file any more", stale=tuple(str(run.recurring_run_id) for run in runs))
        for name, runs in sorted(ours.items())
    ]
    return changes + gone


def _change(wanted: Desired, runs: list[Any]) -> Change:
    name = wanted.schedule.name
    if not runs:
        return Change("create", name, "not there yet", wanted)
    same = [run for run in runs if _hash(run) == wanted.hash and _state_fits(run, wanted.schedule)]
    stale = tuple(str(run.recurring_run_id) for run in runs if run not in same[:1])
    if same and not stale:
        return Change("keep", name, "as in the file")
    if same:
        return Change("remove", name, "there more than once", stale=stale)
    old = " ".join(_hash(run) for run in runs)
    why = "switched on or off by hand" if old == wanted.hash else f"{old} is now {wanted.hash}"
    return Change("replace", name, why, wanted, stale)


def _hash(run: Any) -> str:
    found = MARK.match(run.description or "")
    return found[1] if found else ""


def _state_fits(run: Any, schedule: Schedule) -> bool:
    return run.status in (None, "ENABLED" if schedule.enabled else "DISABLED")


def apply(cluster: Cluster, changes: Iterable[Change], said: Callable[[Change], None] = lambda change: None) -> None:
    """Carries the changes out, one after the other; each is told to `said` when it is done.

    Raises ClusterError; what was done by then stays, and applying again goes on from there.
    """
    experiments: dict[str, str] = {}
    for change in changes:
        for identity in change.stale:
            cluster.disable_recurring_run(identity)
        if change.desired is not None and change.kind in ("create", "replace"):
            name = change.desired.configuration.experiment
            experiments[name] = experiments.get(name) or cluster.experiment(name)
            cluster.create_recurring_run(recurring_run(change.desired, experiments[name]))
        for identity in change.stale:
            cluster.delete_recurring_run(identity)
        said(change)


def recurring_run(desired: Desired, experiment: str) -> Any:
    """The API's object for a schedule."""
    import kfp_server_api as api  # type: ignore[import-untyped,unused-ignore]

    schedule = desired.schedule
    parameters = {"config": desired.configuration.canonical()}
    return api.V2beta1RecurringRun(
        display_name=schedule.name,
        description=f"kiwi-schedule {desired.hash}\n{schedule.description}".strip(),
        pipeline_spec=desired.spec,
        runtime_config=api.V2beta1RuntimeConfig(parameters=parameters, pipeline_root=desired.place.pipeline_root),
        service_account=desired.place.service_account,
        max_concurrency=str(schedule.concurrency),
        trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=check_cron(schedule.cron))),
        mode=api.RecurringRunMode.ENABLE if schedule.enabled else api.RecurringRunMode.DISABLE,
        no_catchup=not schedule.catchup,
        experiment_id=experiment,
    )
