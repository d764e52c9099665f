"""The user's own pairs: a CSV (or a folder that holds pairs.csv) of source, target and instruction.

Columns `src_video, tgt_video, prompt`, and optionally `id, edit_type, ref_image, license, source_dataset`; paths are
relative to the CSV's folder and may not leave it. `;` and tabs are found out, a byte-order mark is no matter.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kiwi import storage
from kiwi.configuration import SourceSettings
from kiwi.dataset.schema import EditPair, Reason, Task
from kiwi.errors import KiwiError, UsageError

REQUIRED = ("src_video", "tgt_video", "prompt")
OPTIONAL = ("id", "edit_type", "ref_image", "license", "source_dataset")
UNSPECIFIED_LICENSE = "unspecified"
GUESSED = "keyword_heuristic"
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})

TASKS = {
    "global_style": Task.GLOBAL_STYLE,
    "style": Task.GLOBAL_STYLE,
    "background_change": Task.BACKGROUND_CHANGE,
    "background_reference": Task.BACKGROUND_CHANGE,
    "background": Task.BACKGROUND_CHANGE,
    "local_change": Task.LOCAL_CHANGE,
    "subject_reference": Task.LOCAL_CHANGE,
    "subject": Task.LOCAL_CHANGE,
    "replace": Task.LOCAL_CHANGE,
    "local_remove": Task.LOCAL_REMOVE,
    "remove": Task.LOCAL_REMOVE,
    "local_add": Task.LOCAL_ADD,
    "add": Task.LOCAL_ADD,
}

# In order: the first that fits decides. "Replace the background" is a background change, not a local one.
_KEYWORDS = (
    (Task.GLOBAL_STYLE, r"\b(style|aesthetic|cartoon|anime|grayscale|sepia|black and white|watercolou?r)\b"),
    (Task.BACKGROUND_CHANGE, r"\b(background|backdrop|scenery)\b"),
    (Task.LOCAL_REMOVE, r"\b(remove|delete|erase|get rid of|take away)\b"),
    (Task.LOCAL_ADD, r"\b(add|insert|place|put|overlay)\b"),
    (Task.LOCAL_CHANGE, r"\b(replace|change|turn|make|swap|recolou?r|convert|transform|dress)\b"),
)
_NAMES_A_REFERENCE = re.compile(
    r"\b(reference|(given|provided|attached|shown|this|second|in the)\s+(image|picture|photo))\b",
    re.IGNORECASE,
)


class SourceError(UsageError):
    """A source that cannot be listed: nothing of it can be used. Exit code 2."""


class SourceFailure(KiwiError):  # noqa: N818 - the failure of one row, not of the source
    """One listed pair whose media cannot be opened: its row is quarantined with `reason`, the run goes on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class PairMedia:
    """The files of one pair: a path on this machine, or the bytes of a remote object. `reference` is None if not given.

    `extension` and `target_extension` are lower case with the dot (".mp4").
    """

    source: bytes | Path
    target: bytes | Path
    reference: bytes | Path | None
    extension: str
    target_extension: str


def pairs_csv(location: str | None) -> str:
    """The path or address of the CSV that `--pairs` means. Raises SourceError if there is none."""
    if not location:
        raise SourceError("no pairs given", "give --pairs a CSV, or a folder with pairs.csv")
    if location.lower().endswith((".csv", ".tsv")):
        if not storage.exists(location):
            raise SourceError(f"{location}: not found", "check --pairs")
        return location
    if not storage.exists(location):
        raise SourceError(f"{location}: no such folder", "check --pairs")
    if not storage.is_folder(location):
        return location
    inside = storage.join(location, "pairs.csv")
    if not storage.exists(inside):
        raise SourceError(f"{location}: holds no pairs.csv", f"write one with the columns {', '.join(REQUIRED)}")
    return inside


def list_csv(settings: SourceSettings) -> list[EditPair]:
    """Every row of the CSV as a pair, in its order, nothing of the media opened yet.

    Raises:
        SourceError: the CSV is missing, empty, no readable text, or without the columns.
    """
    path = pairs_csv(settings.pairs)
    rows = _rows(path)
    name = PurePosixPath(storage.parent(path).replace("\\", "/")).name or "pairs"
    return [_pair(position, row, name) for position, row in enumerate(rows)]


def open_listed(settings: SourceSettings, pair: EditPair) -> PairMedia:
    """Finds the media of a listed pair.

    Raises:
        SourceFailure: a path is missing, names no file, or leads out of the CSV's folder.
    """
    root = storage.parent(pairs_csv(settings.pairs))
    source = _file(root, pair.src_video, Reason.SOURCE_MISSING)
    target = _file(root, pair.tgt_video, Reason.TARGET_MISSING)
    reference = _file(root, pair.ref_image, Reason.REFERENCE_MISSING) if pair.ref_image else None
    return PairMedia(source, target, reference, _suffix(pair.src_video), _suffix(pair.tgt_video))


def task_of(edit_type: str) -> Task:
    """The source's own word for an edit in our taxonomy; a word that is not known is OTHER."""
    return TASKS.get(re.sub(r"[\s\-]+", "_", edit_type.strip().lower()), Task.OTHER)


def guess_task(prompt: str) -> Task:
    """A keyword heuristic for pairs that come without an edit type. It reads no meaning: OTHER where nothing fits."""
    for task, pattern in _KEYWORDS:
        if re.search(pattern, prompt, re.IGNORECASE):
            return task
    return Task.OTHER


def _pair(position: int, row: dict[str, str], dataset: str) -> EditPair:
    prompt, edit_type, reference = row["prompt"], row.get("edit_type", ""), row.get("ref_image", "")
    task = task_of(edit_type) if edit_type else guess_task(prompt)
    still = all(_suffix(row[column]) in _IMAGES for column in ("src_video", "tgt_video"))
    return EditPair(
        position=position,
        pair_id=row.get("id") or f"{dataset}-{position:07d}",
        src_video=row["src_video"],
        tgt_video=row["tgt_video"],
        prompt=prompt,
        edit_type=edit_type or f"{GUESSED}:{task}",
        task=task,
        source_dataset=row.get("source_dataset") or dataset,
        license=row.get("license") or UNSPECIFIED_LICENSE,
        ref_image=reference,
        media="image" if still else "video",
        needs_reference=bool(reference) and bool(_NAMES_A_REFERENCE.search(prompt)),
    )


def _rows(path: str) -> list[dict[str, str]]:
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: is no UTF-8 text ({error.reason})", "save the CSV as UTF-8") from error
    except storage.StorageError as error:
        raise SourceError(error.message, error.remedy) from error
    if not text.strip():
        raise SourceError(f"{path}: is empty", f"write a header ({', '.join(REQUIRED)}) and a row for each pair")
    found: list[str] = []
    for delimiter in (",", ";", "\t"):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            header = [name.strip().lower() for name in next(reader)]
            found = header if len(header) > len(found) else found
            if set(REQUIRED) <= set(header):
                rows = [dict(zip(header, (cell.strip() for cell in row), strict=False)) for row in reader if any(row)]
                break
        except csv.Error as error:
            raise SourceError(f"{path}: line {reader.line_num}: {error}", "save the file as a plain CSV") from error
    else:
        missing = ", ".join(name for name in REQUIRED if name not in found)
        shown = ", ".join(found)[:200]
        raise SourceError(f"{path}: no column {missing} (found: {shown})", f"columns: {', '.join(REQUIRED + OPTIONAL)}")
    if not rows:
        raise SourceError(f"{path}: has a header but no rows", "write a row for each pair")
    return [{name: row.get(name, "") for name in (*REQUIRED, *OPTIONAL)} for row in rows]


def _file(root: str, listed: str, missing: Reason) -> bytes | Path:
    if not listed:
        raise SourceFailure(missing, "the row names no file")
    if "\0" in listed:
        raise SourceFailure(Reason.PATH_ESCAPES, f"{listed!r}: is no path")
    if storage.is_remote(root):
        if storage.is_remote(listed) or listed.startswith("/") or posixpath.normpath(listed).startswith(".."):
            raise SourceFailure(Reason.PATH_ESCAPES, f"{listed}: leads out of {root}")
        try:
            return storage.read_bytes(storage.join(root, listed))
        except storage.StorageError as error:
            raise SourceFailure(missing, error.message) from error
    folder = storage.local(root).resolve()
    try:
        path = (folder / listed).resolve()
        inside, there = path.is_relative_to(folder), path.is_file()
    except (OSError, RuntimeError) as error:
        raise SourceFailure(missing, f"{listed}: {error}") from error
    if not inside:
        raise SourceFailure(Reason.PATH_ESCAPES, f"{listed}: leads out of the folder of the CSV")
    if not there:
        raise SourceFailure(missing, f"{listed}: no such file in the folder of the CSV")
    return path


def _suffix(listed: str) -> str:
    return PurePosixPath(listed.replace("\\", "/")).suffix.lower()
