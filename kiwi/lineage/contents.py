"""What a dataset folder holds, hashed once, and how it gets into the repository without a second copy on the disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from kiwi.configuration import canonical_json
from kiwi.workspace import write_json

_CLONE = 0x40049409  # Linux's FICLONE: a copy that shares its blocks until one of the two is written to
_SETTLED = 2.0  # seconds after which a further write shows in a file's time on every file system


def describe(folder: Path, known: Path | None = None) -> dict[str, Any]:
    """What a folder holds: {"files": [{"path", "bytes", "sha256"}] by path, "bytes", "digest" (of that list)}.

    `known` is a file of hashes made earlier. A file with the same inode, size and time of change to the nanosecond
    is not read again; one changed less than 2 s ago is not remembered.
    """
    hashes: dict[str, str] = _read_known(known)
    remembered = dict(hashes)
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        mark = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"
        sha = hashes.get(mark)
        if sha is None:
            with open(path, "rb") as file:
                sha = hashlib.file_digest(file, "sha256").hexdigest()
            if time.time() - stat.st_mtime > _SETTLED:
                remembered[mark] = sha
        files.append({"path": path.relative_to(folder).as_posix(), "bytes": stat.st_size, "sha256": sha})
    if known is not None and remembered != hashes:
        write_json(known, remembered)
    return {"files": files, **totals(files)}


def totals(files: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes and digest of a list of files."""
    whole = hashlib.sha256(canonical_json(files).encode()).hexdigest()
    return {"bytes": sum(int(file["bytes"]) for file in files), "digest": whole}


def same_files(folder: Path, contents: dict[str, Any], known: Path | None = None) -> bool:
    """Whether `folder` holds exactly these files. Sizes that differ are told without reading anything."""
    if not folder.is_dir():
        return False
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sizes != {file["path"]: file["bytes"] for file in contents["files"]}:
        return False
    return bool(describe(folder, known)["digest"] == totals(contents["files"])["digest"])


def difference(folder: Path, contents: dict[str, Any]) -> str:
    """The first files that are missing, changed or too many."""
    has = {file["path"]: file["sha256"] for file in describe(folder)["files"]} if folder.is_dir() else {}
    should = {file["path"]: file["sha256"] for file in contents["files"]}
    wrong = sorted(path for path in {*has, *should} if has.get(path) != should.get(path))
    return ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def copy_in(folder: Path, place: Path, may_link: bool) -> None:
    """Puts a folder in `place`, whole: beside it first, then by rename.

    No bytes are copied where the file system can clone; nor, with `may_link`, where both lie on one: a hard link is
    as good as a copy for files that are replaced and never written into.
    """
    staging = place.with_name(f".{place.name}.staging")
    for old in (staging, place):
        if old.exists():
            writable(old, files=False)
            shutil.rmtree(old)
        if old is staging:
            shutil.copytree(folder, staging, copy_function=_link if may_link else _clone)
    os.replace(staging, place)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        _clone(source, destination)


def _clone(source: str, destination: str) -> None:
    if sys.platform == "linux":
        try:
            with open(source, "rb") as original, open(destination, "wb") as copy:
                fcntl.ioctl(copy.fileno(), _CLONE, original.fileno())
            return
        except OSError:
            pass  # another file system, or one that cannot: the copy below either works or raises
    shutil.copyfile(source, destination)


def writable(folder: Path, files: bool = True) -> None:
    """DVC protects what is linked to its cache; a folder that leaves it is the user's."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink() and (files or path.is_dir()):
            path.chmod(path.stat().st_mode | 0o200)


def _read_known(known: Path | None) -> dict[str, str]:
    """The hashes made earlier; a file that cannot be read only means that all is hashed again."""
    try:
        found = json.loads(known.read_text()) if known is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
