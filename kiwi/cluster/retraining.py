"""Whether there is something new to train on: the newest dataset version against the champion's, once for a commit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi.configuration import RunConfiguration
from kiwi.lineage import list_versions
from kiwi.registry import champion
from kiwi.registry.versions import list_versions as list_models
from kiwi.tracking import attempt_of, tracking_uri
from kiwi.workspace import Workspace, read_json

if TYPE_CHECKING:
    from kiwi.tracking import TaskRun

TRAIN, REST = "train", "rest"
REVISION = "dataset.revision"


def decide(configuration: RunConfiguration, task: TaskRun) -> str:
    """ "train" for a dataset commit that neither the champion nor any other version of the model was trained on and
    that no other run has taken; "rest" otherwise, with the reason in the records.

    A commit stays taken when its run fails: the reason is looked at before hours are spent again. Deleting the file
    `<work folder>/retraining/<commit>.json` gives it free.

    Raises TrackingUnavailable where the registry does not answer: silence does not mean that there is no champion.
    """
    newest = newest_dataset(configuration)
    if newest is None:
        return _rest(task, "no dataset version was published in this work folder")
    revision = str(newest["revision"])
    task.tags({REVISION: revision, "dataset.version": str(newest["version"])})
    reigning = champion(configuration)
    if reigning is not None and reigning.tags.get(REVISION) == revision:
        return _rest(task, f"the champion, version {reigning.version}, was trained on {newest['version']}")
    for version in list_models(tracking_uri(configuration), configuration.model_name):
        if version.tags.get(REVISION) == revision:
            return _rest(task, f"version {version.version} was trained on {newest['version']} and is not the champion")
    holder = take(claim_file(configuration, revision), attempt_of(configuration))
    if holder is not None:
        file = claim_file(configuration, revision)
        return _rest(task, f"{newest['version']} was taken by run {holder}; delete {file} to start it again")
    return TRAIN


def newest_dataset(configuration: RunConfiguration) -> dict[str, Any] | None:
    """The newest version in the work folder's repository; None where there is none."""
    known = list_versions(Workspace.of(configuration).repository)
    return known[-1] if known else None


def claim_file(configuration: RunConfiguration, revision: str) -> Path:
    return Workspace.of(configuration).root / "retraining" / f"{revision}.json"


def take(file: Path, attempt: str) -> str | None:
    """Takes a commit for this attempt: None where it has it now, or had it before; else the attempt that has it.

    Of several that try at once exactly one gets it, also on a volume that several hosts mount.
    """
    import json

    file.parent.mkdir(parents=True, exist_ok=True)
    mine = file.with_name(f".{file.stem}.{attempt}")
    mine.write_text(json.dumps({"run": attempt}))
    try:
        os.link(mine, file)  # a file appears with its content, or not at all
        return None
    except FileExistsError:
        holder = str(read_json(file)["run"])
        return None if holder == attempt else holder
    finally:
        mine.unlink(missing_ok=True)


def _rest(task: TaskRun, why: str) -> str:
    task.note(why)
    print(f"rest: {why}", flush=True)
    return REST
