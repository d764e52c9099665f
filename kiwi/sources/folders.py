"""What lies directly in a folder, here or in S3: a collection's listing files, without walking through its media."""

from __future__ import annotations

import os
import re

from kiwi import storage
from kiwi.sources.adapter import SourceError
from kiwi.storage.remote import ask, filesystem, told


def files_in(folder: str) -> list[str]:
    """Names of the files directly in `folder`, `part2` before `part10`. An absent folder has none."""
    return _sorted(name for name, is_folder in _listed(folder) if not is_folder)


def folders_in(folder: str) -> list[str]:
    """Names of the folders directly in `folder`."""
    return _sorted(name for name, is_folder in _listed(folder) if is_folder)


def require_folder(root: str) -> str:
    """`root` without a trailing slash. Raises SourceError if it is no folder."""
    try:
        if storage.is_folder(root):
            return root.rstrip("/") or root
        found = storage.exists(root)
    except storage.StorageError as error:
        raise SourceError(error.message, error.remedy) from error
    said = "is a file, not a folder" if found else "no such folder"
    raise SourceError(f"{root}: {said}", "give the folder (or s3:// address) that holds the collection")


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key in which `chunk_2` comes before `chunk_10`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", name)]


def _sorted(names: object) -> list[str]:
    return sorted(names, key=lambda name: (natural(name), name))  # type: ignore[call-overload, no-any-return]


def _listed(folder: str) -> list[tuple[str, bool]]:
    try:
        if storage.is_remote(folder):
            return _listed_remotely(folder)
        if not storage.local(folder).is_dir():
            return []
        with told(folder), os.scandir(storage.local(folder)) as found:
            return [(entry.name, entry.is_dir()) for entry in found if not entry.name.startswith(".")]
    except storage.StorageError as error:
        raise SourceError(error.message, error.remedy) from error


def _listed_remotely(folder: str) -> list[tuple[str, bool]]:
    def asked() -> list[dict[str, str]]:
        try:
            return list(filesystem(folder).ls(folder, detail=True, refresh=True))
        except FileNotFoundError:
            return []

    prefix = folder.partition("://")[2].strip("/")
    names = ((str(found["name"]).strip("/"), found["type"] == "directory") for found in ask(folder, asked))
    return [(name.rpartition("/")[2], is_folder) for name, is_folder in names if name != prefix]
