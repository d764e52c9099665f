"""Git and DVC as processes: in one repository and nowhere else, ending with whoever started them, their words kept."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

from kiwi.errors import KiwiError
from kiwi.storage.remote import endpoint, patience

# DVC in this interpreter. Linux kills it with its parent: one that went on alone would hold DVC's locks and write on.
_DVC = """
import ctypes, os, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl:
    prctl(1, 9)
    if os.getppid() != int(sys.argv.pop(1)):
        sys.exit(1)
from dvc.cli import main
sys.exit(main(sys.argv[1:]))
"""
_ABSENT = ("No such file", "key does not exist", "NoSuchKey", "Not Found")
_TRIES = 2 * 5  # botocore's here, times those of s3fs


class LineageError(KiwiError):
    """A dataset version cannot be published or had."""


class MissingDataError(LineageError):
    """The remote answers, and does not have what a version consists of."""


def git(repository: Path | None, *arguments: str) -> str:
    """Runs git in one repository and nowhere else; returns its output. Raises LineageError with git's own words."""
    where = []
    if repository is not None:
        repository = repository.absolute()
        where = [f"--git-dir={repository / '.git'}", f"--work-tree={repository}"]
    return run(["git", *where, *arguments], repository, f"git {arguments[0]}")


def dvc(repository: Path, *arguments: str) -> str:
    """Runs DVC in one repository, by this interpreter. Raises LineageError with DVC's own words."""
    command = [sys.executable, "-c", _DVC, str(os.getpid()), *arguments]
    return run(command, repository, f"dvc {arguments[0]}")


def run(command: list[str], folder: Path | None, called: str) -> str:
    """One process to its end. `called` is what an error calls it, such as "dvc push"."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= _GIT_SETTINGS
    if called.startswith("dvc ") and folder is not None:
        environment |= _dvc_settings(folder)
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        program = called.partition(" ")[0]
        raise LineageError(f"{program} is not installed", f"install {program}") from error
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith(("ERROR", "fatal", "error"))]
        telling = (errors or said[-1:] or ["failed"])[0]
        missing = _missing(said) if called == "dvc pull" else []
        if missing:
            words = f"{called}: the remote lacks data, {len(missing)} objects such as {missing[0]}"
            raise MissingDataError(words, "restore the remote from a backup, or publish the dataset again")
        raise LineageError(f"{called}: {telling}", f"in {folder}" if folder else "")
    return done.stdout.strip()


def _missing(said: list[str]) -> list[str]:
    """The objects that DVC says it found nowhere: at once in a list, or one by one when it came to fetch them."""
    listed = [line.removeprefix("md5:").strip() for line in said if line.startswith("md5:")]
    failed = [line for line in said if "failed to transfer" in line and any(word in line for word in _ABSENT)]
    return listed + [line.split("'")[1] if "'" in line else line for line in failed]


_GIT_SETTINGS = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",  # a volume may belong to another user than the container's
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_TERMINAL_PROMPT": "0",
}


def _dvc_settings(folder: Path) -> dict[str, str]:
    """No configuration but the repository's, and the store's endpoint: by the environment, so never committed."""
    private = (folder / ".dvc" / "tmp").absolute()
    settings = {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(private / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(private / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(private / "system"),
        "AWS_RETRY_MODE": "standard",
        "AWS_MAX_ATTEMPTS": "2",
    }
    named = endpoint("s3")
    return settings | ({"AWS_ENDPOINT_URL_S3": named} if named else {})


def request_seconds() -> int:
    """How long DVC waits for one answer of a store that hangs, so that all its tries take about our patience."""
    return max(3, math.ceil(patience() / _TRIES))
