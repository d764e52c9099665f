"""Dataset versions: published with DVC and git into the run's own repository, listed, and pulled back, verified.

A version is a git tag `refvie/vN`. The tag is made last, after the data lie in the remote and the commit is made, so
a publication that is killed leaves no half version, and running it again completes it. The project's own checkout is
never touched: git is told its repository in every call, and no GIT_ variable or user configuration is listened to.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration, canonical_json
from kiwi.errors import KiwiError, UsageError
from kiwi.tracking import TaskRun, attempt_of
from kiwi.tracking.server import locked
from kiwi.workspace import Workspace, write_json

SERIES = "refvie"
REMOTE = "store"
DATASET = "dataset"
VERSION_FILE = "version.json"


class LineageError(KiwiError):
    """A dataset version cannot be published or had."""


def publish_dataset(configuration: RunConfiguration, dataset_folder: Path, task: TaskRun) -> dict[str, Any]:
    """Publishes a dataset folder as the next version, or returns the newest one where it holds the same bytes.

    Returns {"version": "refvie/v1", "revision": commit, "digest", "path": the published folder in the workspace,
    "repository", "remote", "files", "bytes"} and writes it to `<workspace>/dataset.json`. The remote is
    KIWI_DVC_REMOTE (such as s3://bucket/path), else `<workspace>/dvc-remote`, named relatively.
    Raises LineageError, and Locked while another process publishes here.
    """
    started = time.monotonic()
    workspace = Workspace.of(configuration)
    repository = workspace.repository
    if not dataset_folder.is_dir():
        raise LineageError(f"no dataset in {dataset_folder}", "assemble it first: `kiwi data build`")
    contents = describe(dataset_folder)
    with locked(workspace.root / ".data.lock", seconds=600.0):
        _open_repository(repository, workspace.dvc_remote)
        known = list_versions(repository)
        if known and known[-1]["digest"] == contents["digest"] and _same_files(repository / DATASET, contents):
            task.note("reused")
            version = known[-1]
        else:
            version = _publish(repository, dataset_folder, contents, known, attempt_of(configuration))
    said = {
        "version": version["version"],
        "revision": version["revision"],
        "digest": contents["digest"],
        "path": str(repository / DATASET),
        "repository": str(repository),
        "remote": _remote_url(workspace.dvc_remote),
        "files": len(contents["files"]),
        "bytes": contents["bytes"],
    }
    write_json(workspace.root / "dataset.json", said)
    task.tags({f"dataset.{key}": said[key] for key in ("version", "revision", "digest")})
    task.metrics({"files": said["files"], "bytes": said["bytes"], "publish_seconds": time.monotonic() - started})
    return said


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
            said = _version_file(repository, revision)
            about = {"digest": said["digest"], "files": len(said["files"]), "bytes": said["bytes"], "run": said["run"]}
            found.append(
                {"version": name, "number": int(number), "revision": revision, "published": published, **about}
            )
    return sorted(found, key=lambda version: int(version["number"]))


def pull(repository: Path, version: str, out: Path) -> dict[str, Any]:
    """Brings a version ("refvie/v1", "v1", "1", "latest" or a commit) from the remote into `out`, and verifies it.

    `out` must be absent or empty; it appears whole or not at all. The data come through `dvc pull` in a fresh clone,
    so what the remote does not hold is not found elsewhere. Returns {"version", "revision", "digest", "path",
    "files", "bytes", "seconds"}. Raises UsageError for an unknown version or a folder in use, LineageError where
    the remote lacks data or a file is not what was published.
    """
    started = time.monotonic()
    wanted = _resolve(repository, version)
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty", "name a folder that does not exist yet")
    contents = _version_file(repository, wanted["revision"])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        clone = Path(staging) / "clone"
        git(None, "clone", "--quiet", "--no-checkout", str(repository.absolute()), str(clone))
        git(clone, "checkout", "--quiet", "--detach", wanted["revision"])
        remote = _configured_remote(clone)
        if not _is_address(remote):  # relative to the repository's .dvc folder, which the clone is not beside
            remote = os.path.normpath(repository.absolute() / ".dvc" / remote)
            if not Path(remote).is_dir():
                raise LineageError(f"the DVC remote {remote} is gone", "restore it, or publish the dataset again")
        local = f"[cache]\n    type = hardlink,copy\n['remote \"{REMOTE}\"']\n    url = {remote}\n"
        (clone / ".dvc" / "config.local").write_text(local)
        dvc(clone, "pull", "--quiet", f"{DATASET}.dvc")
        _writable(clone / DATASET)
        if not _same_files(clone / DATASET, contents):
            wrong = _difference(clone / DATASET, contents)
            raise LineageError(
                f"{wanted['version']} from {remote} is not what was published: {wrong}",
                "restore the remote from a backup, or publish the dataset again",
            )
        os.replace(clone / DATASET, out)
    return {
        "version": wanted["version"],
        "revision": wanted["revision"],
        "digest": contents["digest"],
        "path": str(out),
        "files": len(contents["files"]),
        "bytes": contents["bytes"],
        "seconds": time.monotonic() - started,
    }


def describe(folder: Path) -> dict[str, Any]:
    """What a folder holds: {"files": [{"path", "bytes", "sha256"}] by path, "bytes", "digest" (of that list)}."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(folder).as_posix()
        files.append({"path": name, "bytes": path.stat().st_size, "sha256": sha})
    whole = hashlib.sha256(canonical_json(files).encode()).hexdigest()
    return {"files": files, "bytes": sum(int(str(file["bytes"])) for file in files), "digest": whole}


def _publish(
    repository: Path, folder: Path, contents: dict[str, Any], known: list[dict[str, Any]], run: str
) -> dict[str, Any]:
    """Copy, add, push, commit, tag: each may find the work of a killed one before it done."""
    number = known[-1]["number"] + 1 if known else 1
    name = f"{SERIES}/v{number}"
    _copy_in(folder, repository / DATASET, contents)
    dvc(repository, "add", "--quiet", DATASET)
    dvc(repository, "push", "--quiet", f"{DATASET}.dvc")
    write_json(repository / VERSION_FILE, {"version": name, "run": run, **contents})
    git(repository, "add", "--all", ".")
    if git(repository, "status", "--porcelain"):
        size = f"{len(contents['files'])} files, {contents['bytes']} bytes"
        said = f"Publish {name}\n\n{size}, sha256 {contents['digest']}"
        git(repository, "commit", "--quiet", "--no-verify", "-m", said)
    git(repository, "tag", "--annotate", "-m", f"{name}, by {run}", name)
    return {"version": name, "revision": git(repository, "rev-parse", "HEAD")}


def _copy_in(folder: Path, place: Path, contents: dict[str, Any]) -> None:
    """Puts the dataset into the repository whole: beside its place first, then by rename."""
    if _same_files(place, contents):
        return
    staging = place.with_name(f".{place.name}.staging")
    for old in (staging, place):
        if old.exists():
            _writable(old)
            shutil.rmtree(old)
        if old is staging:
            shutil.copytree(folder, staging, copy_function=shutil.copyfile)
    os.replace(staging, place)


def _open_repository(repository: Path, folder_remote: Path) -> None:
    """Makes the git and DVC repository where there is none, and clears what a killed git left."""
    repository.mkdir(parents=True, exist_ok=True)
    remote = _remote_url(folder_remote)
    if not _is_address(remote):
        folder_remote.mkdir(parents=True, exist_ok=True)
        remote = os.path.relpath(folder_remote.absolute(), repository.absolute() / ".dvc")
    (repository / ".git" / "index.lock").unlink(missing_ok=True)
    if not (repository / ".git" / "HEAD").exists():
        git(None, "init", "--quiet", "--initial-branch=main", "--template=", str(repository))
    for key, value in (("user.name", "kiwi"), ("user.email", "kiwi@localhost"), ("commit.gpgsign", "false")):
        git(repository, "config", "--local", key, value)
    config = repository / ".dvc" / "config"
    said = f"[core]\n    analytics = false\n    check_update = false\n    remote = {REMOTE}\n"
    said += f"[cache]\n    type = hardlink,copy\n['remote \"{REMOTE}\"']\n    url = {remote}\n"
    if not config.exists() or not (repository / ".dvcignore").exists():
        dvc(repository, "init", "--quiet", "--force")
    if config.read_text() != said:
        temporary = config.with_name("config.new")
        temporary.write_text(said)
        os.replace(temporary, config)


def _remote_url(folder: Path) -> str:
    return os.environ.get("KIWI_DVC_REMOTE") or str(folder)


def _is_address(remote: str) -> bool:
    """Whether a remote is found from everywhere: a URL or an absolute path."""
    return "://" in remote or (bool(os.environ.get("KIWI_DVC_REMOTE")) and os.path.isabs(remote))


def _configured_remote(clone: Path) -> str:
    for line in (clone / ".dvc" / "config").read_text().splitlines():
        if line.strip().startswith("url = "):
            return line.split("=", 1)[1].strip()
    raise LineageError("the repository names no DVC remote", "publish the dataset again")


def _version_file(repository: Path, revision: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(git(repository, "show", f"{revision}:{VERSION_FILE}"))
    return said


def _resolve(repository: Path, version: str) -> dict[str, Any]:
    known = list_versions(repository)
    if version == "latest" and known:
        return known[-1]
    for candidate in known:
        names = (candidate["version"], f"v{candidate['number']}", str(candidate["number"]))
        if version in names or (len(version) >= 7 and candidate["revision"].startswith(version)):
            return candidate
    have = ", ".join(candidate["version"] for candidate in known) or "none"
    raise UsageError(f"no dataset version {version!r} in {repository}", f"published: {have}")


def _same_files(folder: Path, contents: dict[str, Any]) -> bool:
    return folder.is_dir() and describe(folder)["digest"] == contents["digest"]


def _difference(folder: Path, contents: dict[str, Any]) -> str:
    """The first files that are missing, changed or too many."""
    has = {file["path"]: file["sha256"] for file in describe(folder)["files"]} if folder.is_dir() else {}
    should = {file["path"]: file["sha256"] for file in contents["files"]}
    wrong = sorted(path for path in {*has, *should} if has.get(path) != should.get(path))
    return ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _writable(folder: Path) -> None:
    """DVC protects what is linked to its cache; a folder that leaves it, or goes, is the user's."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)


def git(repository: Path | None, *arguments: str) -> str:
    """Runs git in one repository and nowhere else; returns its output. Raises LineageError with git's own words."""
    where = []
    if repository is not None:
        repository = repository.absolute()
        where = [f"--git-dir={repository / '.git'}", f"--work-tree={repository}"]
    return _run(["git", *where, *arguments], repository, "git")


def dvc(repository: Path, *arguments: str) -> str:
    """Runs DVC in one repository, by this interpreter. Raises LineageError with DVC's own words."""
    return _run([sys.executable, "-m", "dvc", *arguments], repository, "dvc")


def _run(command: list[str], folder: Path | None, program: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "1",  # a volume may belong to another user than the container's
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_TERMINAL_PROMPT": "0",
        "DVC_NO_ANALYTICS": "1",
    }
    if program == "dvc" and folder is not None:
        private = folder / ".dvc" / "tmp"
        environment |= {
            "DVC_SITE_CACHE_DIR": str((private / "site").absolute()),
            "DVC_GLOBAL_CONFIG_DIR": str((private / "global").absolute()),
            "DVC_SYSTEM_CONFIG_DIR": str((private / "system").absolute()),
        }
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LineageError(f"{program} is not installed", f"install {program}") from error
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith(("ERROR", "fatal", "error"))]
        telling = (errors or said[-1:] or ["failed"])[0]
        verb = next((argument for argument in command[1:] if not argument.startswith("-") and argument != "dvc"), "")
        raise LineageError(f"{program} {verb}: {telling}", f"in {folder}" if folder else "")
    return done.stdout.strip()
