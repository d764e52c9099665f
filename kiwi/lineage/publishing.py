"""Publishes a dataset folder as the next version: copied in, added, pushed, checked in the remote, committed, tagged.

Each step finds the work of a killed one before it done.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from kiwi import storage
from kiwi.configuration import RunConfiguration
from kiwi.lineage.contents import copy_in, describe, difference, same_files
from kiwi.lineage.process import LineageError, dvc, git
from kiwi.lineage.repository import (
    DATASET,
    SERIES,
    VERSION_FILE,
    list_versions,
    open_repository,
    remote_url,
    transfer,
)
from kiwi.tracking import TaskRun, attempt_of
from kiwi.tracking.server import locked
from kiwi.workspace import Workspace, write_json

_KNOWN_HASHES = Path(".dvc") / "tmp" / "sha256.json"


def publish_dataset(configuration: RunConfiguration, dataset_folder: Path, task: TaskRun) -> dict[str, Any]:
    """Publishes a dataset folder as the next version, or returns the newest one where it holds the same bytes.

    Returns {"version": "refvie/v1", "revision": commit, "digest", "path": the published folder in the workspace,
    "repository", "remote", "files", "bytes"} and writes it to `<workspace>/dataset.json`. The remote is
    KIWI_DVC_REMOTE (such as s3://bucket/path), else `<workspace>/dvc-remote`, named relatively.
    Raises LineageError, StorageError where the remote's store cannot be used, and Locked while another process
    publishes here.
    """
    started = time.monotonic()
    workspace = Workspace.of(configuration)
    repository = workspace.repository
    remote = remote_url(workspace.dvc_remote)
    if not dataset_folder.is_dir():
        raise LineageError(f"no dataset in {dataset_folder}", "assemble it first: `kiwi data build`")
    with locked(workspace.root / ".data.lock", seconds=600.0):
        if storage.is_remote(remote):
            storage.check(remote)
        open_repository(repository, workspace.dvc_remote)
        contents = describe(dataset_folder, repository / _KNOWN_HASHES)
        known = list_versions(repository)
        if known and known[-1]["digest"] == contents["digest"] and _is_in_place(repository, contents):
            task.note("reused")
            version = known[-1]
        else:
            inside = dataset_folder.resolve().is_relative_to(workspace.root.resolve())
            _place(repository, dataset_folder, contents, may_link=inside)
            _push(repository, remote, contents)
            version = _commit(repository, contents, known, attempt_of(configuration))
    said = {
        "version": version["version"],
        "revision": version["revision"],
        "digest": contents["digest"],
        "path": str(repository / DATASET),
        "repository": str(repository),
        "remote": remote,
        "files": len(contents["files"]),
        "bytes": contents["bytes"],
    }
    write_json(workspace.root / "dataset.json", said)
    task.tags({f"dataset.{key}": said[key] for key in ("version", "revision", "digest")})
    task.metrics({"files": said["files"], "bytes": said["bytes"], "publish_seconds": time.monotonic() - started})
    return said


def _is_in_place(repository: Path, contents: dict[str, Any]) -> bool:
    return same_files(repository / DATASET, contents, repository / _KNOWN_HASHES)


def _place(repository: Path, folder: Path, contents: dict[str, Any], may_link: bool) -> None:
    """The dataset in the repository and in DVC's cache. What is published is what lies there, so that is checked."""
    if not _is_in_place(repository, contents):
        copy_in(folder, repository / DATASET, may_link)
        if not _is_in_place(repository, contents):
            changed = difference(repository / DATASET, contents)
            raise LineageError(f"{folder} changed while it was published: {changed}", "publish it when it is finished")
    dvc(repository, "add", "--quiet", DATASET)


def _push(repository: Path, remote: str, contents: dict[str, Any]) -> None:
    """Pushes, and asks the remote for every file, since DVC does not: where the list of a folder's files is in the
    remote, or was, it takes the files for granted. What is lacking is sent from the cache.

    Raises LineageError if the remote lacks one after that.
    """
    transfer(repository, remote, "push", f"{DATASET}.dvc")
    for md5 in _lacking(repository, remote, contents):
        storage.upload(Path(_object(str(repository / ".dvc" / "cache"), md5)), _object(remote, md5))
    lacking = _lacking(repository, remote, contents)
    if lacking:
        raise LineageError(f"{remote} lacks {len(lacking)} files after the push, such as {lacking[0]}", "try again")


def _lacking(repository: Path, remote: str, contents: dict[str, Any]) -> list[str]:
    """The objects that are missing in the remote or have another size, by their names there."""
    listing: str = yaml.safe_load((repository / f"{DATASET}.dvc").read_text())["outs"][0]["md5"]
    in_cache = Path(_object(str(repository / ".dvc" / "cache"), listing))
    sizes = {file["path"]: int(file["bytes"]) for file in contents["files"]}
    objects = {item["md5"]: sizes[item["relpath"]] for item in json.loads(in_cache.read_text())}
    objects[listing] = in_cache.stat().st_size

    def lacks(md5: str) -> bool:
        place = _object(remote, md5)
        return not storage.exists(place) or storage.size(place) != objects[md5]

    with ThreadPoolExecutor(8) as pool:
        return [md5 for md5, lacking in zip(objects, pool.map(lacks, objects), strict=True) if lacking]


def _object(root: str, md5: str) -> str:
    return storage.join(root, "files", "md5", md5[:2], md5[2:])


def _commit(repository: Path, contents: dict[str, Any], known: list[dict[str, Any]], run: str) -> dict[str, Any]:
    number = known[-1]["number"] + 1 if known else 1
    name = f"{SERIES}/v{number}"
    write_json(repository / VERSION_FILE, {"version": name, "run": run, **contents})
    git(repository, "add", "--all", ".")
    if git(repository, "status", "--porcelain"):
        size = f"{len(contents['files'])} files, {contents['bytes']} bytes"
        said = f"Publish {name}\n\n{size}, sha256 {contents['digest']}"
        git(repository, "commit", "--quiet", "--no-verify", "-m", said)
    git(repository, "tag", "--annotate", "-m", f"{name}, by {run}", name)
    return {"version": name, "revision": git(repository, "rev-parse", "HEAD")}
