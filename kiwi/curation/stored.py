"""Finds the stored rows of a dataset's folder or of a run's work folder, as a scan that reads no references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from kiwi.configuration import RunConfiguration
from kiwi.curation.funnel import Books, add_up
from kiwi.dataset.manifest import MANIFEST, read_manifest
from kiwi.errors import UsageError
from kiwi.workspace import read_json


@dataclass(frozen=True)
class Stored:
    """Rows with their scores, wherever they lie: a scan without references, and what they were made with.

    Attributes:
        parameters: as a manifest has them; empty where nobody wrote them down.
        curators: by stage, `name-version`.
    """

    place: str
    rows: pl.LazyFrame
    parameters: Mapping[str, Any] = field(default_factory=dict)
    curators: Mapping[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, pl.DataType]:
        return dict(self.rows.collect_schema())

    def numeric(self) -> list[str]:
        """What can be held against a bound."""
        return [name for name, kind in self.columns().items() if kind.is_numeric() or kind == pl.Null]


def stored_dataset(folder: Path) -> Stored:
    """The rows of a dataset's folder. Raises ManifestError where it is none, UsageError where it has no rows."""
    manifest = read_manifest(folder)
    parts = [folder / str(entry["path"]) for entry in manifest["files"] if str(entry["path"]).endswith(".parquet")]
    return Stored(str(folder), _scan(folder, parts), manifest.get("parameters", {}), manifest.get("curators", {}))


def stored_workdir(workdir: Path) -> Stored:
    """The rows of a work folder: those of its dataset, else those that curation has decided and not assembled yet.

    Raises UsageError where there are none yet, or several and nothing says which are the run's.
    """
    folder = dataset_in(workdir)
    if folder is not None:
        return stored_dataset(folder)
    curated = _only(workdir, "curation/*/deduplicated")
    if curated is not None:
        return _curated(curated, workdir)
    raise UsageError(
        f"no dataset and no curated rows in {workdir}",
        "name a run's work folder with --workdir, or a dataset's folder with --dataset",
    )


def dataset_in(workdir: Path) -> Path | None:
    """The dataset's folder of a work folder: the published one, else the one that was assembled; None before that.

    Raises UsageError where several were assembled and nothing says which is the run's.
    """
    published = workdir / "dataset.json"
    candidates = [workdir / str(read_json(published)["path"])] if published.is_file() else []
    configuration = _configuration(workdir)
    if configuration is not None:
        from kiwi.curation.finished import dataset_folder

        candidates.append(dataset_folder(configuration))
    for folder in candidates:
        if (folder / MANIFEST).is_file():
            return folder
    manifest = _only(workdir, f"curation/*/dataset/{MANIFEST}")
    return manifest.parent if manifest else None


def books_of_workdir(workdir: Path) -> list[Books]:
    """The funnel of a run that is still being curated: the stages and shards that are finished; [] if none is."""
    from kiwi.curation.stages import books_so_far

    configuration = _configuration(workdir)
    return add_up(books_so_far(configuration)) if configuration is not None else []


def _configuration(workdir: Path) -> RunConfiguration | None:
    """The run's; None where there is none, or where it is of another version and tells nothing here."""
    path = workdir / "configuration.json"
    try:
        return RunConfiguration.parse(path.read_text()) if path.is_file() else None
    except UsageError:
        return None


def _only(workdir: Path, pattern: str) -> Path | None:
    found = sorted(workdir.glob(pattern))
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(workdir)) for path in found)
        raise UsageError(f"{workdir}: holds several, which is the run's? {names}", "name one with --dataset")
    return found[0] if found else None


def _curated(folder: Path, workdir: Path) -> Stored:
    configuration = workdir / "configuration.json"
    parameters = read_json(configuration) if configuration.is_file() else {}
    books = read_json(folder / "books.json") if (folder / "books.json").is_file() else {}
    rows = _scan(folder, sorted(folder.glob("part-*.parquet")))
    return Stored(str(folder), rows, parameters, books.get("curators", {}))


def _scan(folder: Path, parts: Sequence[Path]) -> pl.LazyFrame:
    missing = [part for part in parts if not part.is_file()]
    broken = next((part for part in parts if part not in missing and not _readable(part)), None)
    if broken is not None:
        raise UsageError(f"{broken}: is no Parquet, or cut short", "pull or rebuild the dataset")
    if missing or not parts:
        said = f"{missing[0]}: is not there" if missing else f"{folder}: holds no rows"
        raise UsageError(said, "pull the dataset, or let the run finish")
    return pl.scan_parquet(list(parts), missing_columns="insert", extra_columns="ignore")


def _readable(part: Path) -> bool:
    """Whether it ends as Parquet does: a part that was cut short has no footer."""
    with open(part, "rb") as file:
        head = file.read(4)
        file.seek(max(part.stat().st_size - 4, 0))
        return head == b"PAR1" and part.stat().st_size >= 12 and file.read(4) == b"PAR1"
