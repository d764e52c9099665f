"""Brings a published version back from its remote, verified; one that was killed goes on with what it has."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from kiwi.errors import UsageError
from kiwi.lineage.contents import difference, same_files, writable
from kiwi.lineage.process import LineageError, git
from kiwi.lineage.repository import (
    DATASET,
    configure_here,
    configured_remote,
    resolve,
    transfer,
    version_file,
)
from kiwi.tracking.server import locked

MEDIA = "media/"


def pull(repository: Path, version: str, out: Path, rows_only: bool = False) -> dict[str, Any]:
    """Brings a version ("refvie/v1", "v1", "1", "latest" or a commit) from the remote into `out`, and verifies it.

    `out` must be absent or empty; it appears whole or not at all. The data come through `dvc pull` in a fresh clone
    and a cache of its own, so what the remote does not hold is not found elsewhere. A pull that was killed or cut off
    leaves that cache in `.<name>.pulling` beside `out`; the next one goes on with it and removes it at its end.
    With `rows_only` all but the media comes. Returns {"version", "revision", "digest", "path", "files", "bytes",
    "seconds"}. Raises UsageError for an unknown version or a folder in use, LineageError where the remote lacks data
    or a file is not what was published, StorageError where the remote's store cannot be used.
    """
    started = time.monotonic()
    wanted = resolve(repository, version)
    out = out.absolute()
    _refuse_in_use(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.pulling")
    with locked(staging / "lock", seconds=10.0):
        _refuse_in_use(out)
        dataset, files = fetch(repository, wanted, staging, staging / "cache", rows_only)
        os.replace(dataset, out)
        shutil.rmtree(staging)
    return {
        "version": wanted["version"],
        "revision": wanted["revision"],
        "digest": wanted["digest"],
        "path": str(out),
        "files": len(files),
        "bytes": sum(int(file["bytes"]) for file in files),
        "seconds": time.monotonic() - started,
    }


def fetch(
    repository: Path, wanted: dict[str, Any], staging: Path, cache: Path, rows_only: bool
) -> tuple[Path, list[dict[str, Any]]]:
    """The dataset of a version in a new clone under `staging`, verified, with the list of its files.

    What lies in `cache` is not fetched. Files that are not what was published are thrown away with it.
    """
    contents = version_file(repository, wanted["revision"])
    if rows_only:
        contents = {"files": [file for file in contents["files"] if not file["path"].startswith(MEDIA)]}
    clone = staging / "clone"
    shutil.rmtree(clone, ignore_errors=True)
    git(None, "clone", "--quiet", "--no-checkout", str(repository.absolute()), str(clone))
    git(clone, "checkout", "--quiet", "--detach", wanted["revision"])
    remote = configured_remote(repository, clone)
    if "://" not in remote and not Path(remote).is_dir():
        raise LineageError(f"the DVC remote {remote} is gone", "restore it, or publish the dataset again")
    configure_here(clone, remote, cache)
    transfer(clone, remote, "pull", *_targets(contents["files"], rows_only))
    writable(clone / DATASET)
    if not same_files(clone / DATASET, contents):
        wrong = difference(clone / DATASET, contents)
        shutil.rmtree(cache, ignore_errors=True)
        raise LineageError(
            f"{wanted['version']} from {remote} is not what was published: {wrong}",
            "restore the remote from a backup, or publish the dataset again",
        )
    return clone / DATASET, contents["files"]


def _targets(files: list[dict[str, Any]], rows_only: bool) -> list[str]:
    if not rows_only:
        return [f"{DATASET}.dvc"]
    return sorted({f"{DATASET}/{file['path'].partition('/')[0]}" for file in files})


def _refuse_in_use(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty", "name a folder that does not exist yet")
