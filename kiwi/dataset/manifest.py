"""The manifest: what a dataset consists of, file by file with hashes, and the figures that sum it up.

Its digest is over rows, media and parameters, never over times or places: equal digests are equal datasets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.configuration import canonical_json
from kiwi.dataset.schema import CURATION_STAGES, Status
from kiwi.dataset.statistics import Rows, reasons_of, statistics_of, tally
from kiwi.errors import KiwiError
from kiwi.hashing import sha256_of
from kiwi.workspace import read_json

FORMAT = "kiwi-dataset/1"
MANIFEST, CARD, ROWS, MEDIA = "manifest.json", "README.md", "rows", "media"


class ManifestError(KiwiError):
    """A dataset folder without a manifest, or with one that cannot be understood."""


@dataclass(frozen=True)
class FileEntry:
    """One file of the dataset: path relative to its folder, size in bytes, hash, and rows or members in it."""

    path: str
    bytes: int
    sha256: str
    entries: int

    def said(self) -> dict[str, Any]:
        return {"path": self.path, "bytes": self.bytes, "sha256": self.sha256, "entries": self.entries}


def describe_file(folder: Path, path: Path, entries: int) -> FileEntry:
    """Hashes a file of the dataset."""
    return FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path), entries)


def build_manifest(
    rows: Rows,
    files: Sequence[FileEntry],
    funnel: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of `rows` (all of them, as a table without images or as a scan) that lie in `files`.

    Args:
        parameters: what the dataset was made with, JSON-ready; no paths of this machine.
    """
    statistics = statistics_of(rows)
    trains_as = statistics["trains_as"]
    listed = [entry.said() for entry in files]
    return {
        "format": FORMAT,
        "digest": dataset_digest(listed, parameters),
        "pairs": sum(trains_as.values()),
        "quadruplets": trains_as["quadruplet"],
        "instruction": trains_as["instruction"],
        "splits": statistics["splits"],
        "rejected": reasons_of(rows, Status.REJECTED),
        "failed": reasons_of(rows, Status.FAILED),
        "tasks": {name: counts["rows"] for name, counts in statistics["tasks"].items()},
        "licenses": {name: counts["rows"] for name, counts in statistics["licenses"].items()},
        "curators": curators_of(rows),
        "funnel": [dict(stage) for stage in funnel],
        "parameters": dict(parameters),
        "statistics": statistics,
        "columns": {name: str(kind) for name, kind in rows.lazy().collect_schema().items()},
        "files": listed,
    }


def curators_of(rows: Rows) -> dict[str, str]:
    """The curators that had a hand in the rows: {stage: name-version}, several of one stage joined by " + ".

    The column `curator` holds such a mapping as JSON in each row.
    """
    found: dict[str, set[str]] = {}
    for said in tally(rows, "curator"):
        for stage, name in (json.loads(said) if said else {}).items():
            found.setdefault(stage, set()).add(name)
    known = [stage for stage in CURATION_STAGES if stage in found] + sorted(found.keys() - set(CURATION_STAGES))
    return {stage: " + ".join(sorted(found[stage])) for stage in known}


def dataset_digest(files: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> str:
    """SHA-256 over the paths and hashes of the files and the parameters."""
    parts = [[entry["path"], entry["sha256"]] for entry in sorted(files, key=lambda entry: str(entry["path"]))]
    return hashlib.sha256(canonical_json([FORMAT, parts, dict(parameters)]).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads <folder>/manifest.json. Raises ManifestError if it is missing, broken or of another format."""
    path = Path(folder) / MANIFEST
    try:
        manifest = read_json(path)
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}", "give the folder of a finished dataset") from error
    except ValueError as error:
        raise ManifestError(f"{path}: is no JSON ({error})", "pull or rebuild the dataset") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ManifestError(f"{path}: format {found!r} is not {FORMAT!r}", "use the kiwi version that wrote it")
    return manifest
