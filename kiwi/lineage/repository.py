"""The repository of dataset versions and its DVC remote: opened, its versions listed and found by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kiwi import storage
from kiwi.errors import UsageError
from kiwi.lineage.process import LineageError, MissingDataError, dvc, git, request_seconds

__all__ = ["DATASET", "REMOTE", "SERIES", "LineageError", "dvc", "git", "list_versions"]

SERIES = "refvie"
REMOTE = "store"
DATASET = "dataset"
VERSION_FILE = "version.json"
REMOTE_VARIABLE = "KIWI_DVC_REMOTE"
# What `dvc init` makes besides the configuration, which takes it a second of importing.
_NEW_REPOSITORY = {
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": "# Add patterns of files dvc should ignore, which could improve\n"
    "# the performance. Learn more at\n# https://dvc.org/doc/user-guide/dvcignore\n",
}


def list_versions(repository: Path) -> list[dict[str, Any]]:
    """The published versions, oldest first: {"version", "number", "revision", "digest", "files", "bytes",
    "published" (ISO 8601), "run"}. Empty where nothing was published."""
    if not (repository / ".git" / "HEAD").exists():
        return []
    form = "%(refname:short)%09%(*objectname)%09%(taggerdate:iso-strict)"
    found = []
    for line in git(repository, "for-each-ref", f"--format={form}", f"refs/tags/{SERIES}/").splitlines():
        name, revision, published = line.split("\t")
        number = name.removeprefix(f"{SERIES}/v")
        if number.isdigit() and revision:
            said = version_file(repository, revision)
            about = {"digest": said["digest"], "files": len(said["files"]), "bytes": said["bytes"], "run": said["run"]}
            found.append(
                {"version": name, "number": int(number), "revision": revision, "published": published, **about}
            )
    return sorted(found, key=lambda version: int(version["number"]))


def resolve(repository: Path, version: str) -> dict[str, Any]:
    """A version by "refvie/v1", "v1", "1", "latest" or at least 7 digits of its commit. Raises UsageError."""
    known = list_versions(repository)
    if version == "latest" and known:
        return known[-1]
    for candidate in known:
        names = (candidate["version"], f"v{candidate['number']}", str(candidate["number"]))
        if version in names or (len(version) >= 7 and candidate["revision"].startswith(version)):
            return candidate
    have = ", ".join(candidate["version"] for candidate in known) or "none"
    raise UsageError(f"no dataset version {version!r} in {repository}", f"published: {have}")


def version_file(repository: Path, revision: str) -> dict[str, Any]:
    """What a version says of itself: {"version", "run", "files", "bytes", "digest"}."""
    said: dict[str, Any] = json.loads(git(repository, "show", f"{revision}:{VERSION_FILE}"))
    return said


def open_repository(repository: Path, folder_remote: Path) -> None:
    """Makes the git and DVC repository where there is none, and clears what a killed git or DVC left.

    Called under the publisher's lock. DVC's list of readers and writers names process numbers, which mean nothing
    on a volume that several hosts mount.
    """
    repository.mkdir(parents=True, exist_ok=True)
    remote = remote_url(folder_remote)
    if not os.environ.get(REMOTE_VARIABLE):
        folder_remote.mkdir(parents=True, exist_ok=True)
        remote = os.path.relpath(folder_remote.absolute(), repository.absolute() / ".dvc")
    for left in (".git/index.lock", ".dvc/tmp/rwlock"):
        (repository / left).unlink(missing_ok=True)
    if not (repository / ".git" / "HEAD").exists():
        git(None, "init", "--quiet", "--initial-branch=main", "--template=", str(repository))
    for key, value in (("user.name", "kiwi"), ("user.email", "kiwi@localhost"), ("commit.gpgsign", "false")):
        git(repository, "config", "--local", key, value)
    for name, text in _NEW_REPOSITORY.items():
        if not (repository / name).exists():
            (repository / name).parent.mkdir(exist_ok=True)
            _write(repository / name, text)
    said = f"[core]\n    analytics = false\n    check_update = false\n    remote = {REMOTE}\n"
    said += f"[cache]\n    type = hardlink,copy\n['remote \"{REMOTE}\"']\n    url = {remote}\n"
    _write(repository / ".dvc" / "config", said)
    configure_here(repository, remote)


def configure_here(repository: Path, remote: str, cache: Path | None = None) -> None:
    """Settings of this machine, in the file that git ignores: the cache, a folder remote's place, and time-outs."""
    said = "[cache]\n    type = hardlink,copy\n"
    said += f"    dir = {cache.absolute()}\n" if cache is not None else ""
    said += f"['remote \"{REMOTE}\"']\n    url = {remote}\n"
    if remote.startswith("s3://"):
        said += f"    read_timeout = {request_seconds()}\n    connect_timeout = {min(5, request_seconds())}\n"
    _write(repository / ".dvc" / "config.local", said)


def remote_url(folder: Path) -> str:
    """KIWI_DVC_REMOTE, or the workspace's own folder. Raises UsageError for what DVC could not use or would publish."""
    said = os.environ.get(REMOTE_VARIABLE, "")
    if not said:
        return str(folder)
    parts = urlsplit(said)
    if parts.username or parts.password:
        shown = f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path}"
        remedy = "take them out, they would be committed: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise UsageError(f"{REMOTE_VARIABLE}={shown} holds credentials", remedy)
    good = (parts.scheme == "s3" and parts.netloc) or ("://" in said and parts.scheme != "s3") or os.path.isabs(said)
    if not good or said != said.strip() or any(sign in said for sign in "\n\r\t#,\"'"):
        raise UsageError(f"{REMOTE_VARIABLE}={said!r} is no DVC remote", "s3://bucket/path, or a folder from /")
    return said.rstrip("/")


def configured_remote(repository: Path, clone: Path) -> str:
    """The remote that a clone's commit names; a relative folder is where it is seen from the repository."""
    for line in (clone / ".dvc" / "config").read_text().splitlines():
        if line.strip().startswith("url = "):
            remote = line.split("=", 1)[1].strip()
            return remote if "://" in remote else os.path.normpath(repository.absolute() / ".dvc" / remote)
    raise LineageError("the repository names no DVC remote", "publish the dataset again")


def transfer(repository: Path, remote: str, *arguments: str) -> None:
    """`dvc push` or `dvc pull`, with a store that is asked first: one clear error where it cannot be used at all.

    DVC's requests bear an outage of our patience; where it gave up, it goes on once, if the store is back by then.
    """
    if not remote.startswith("s3://"):
        dvc(repository, *arguments)
        return
    storage.check(remote)
    try:
        dvc(repository, *arguments)
    except MissingDataError:
        raise
    except LineageError:
        storage.check(remote)
        dvc(repository, *arguments)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        storage.write_bytes(path, text.encode())
