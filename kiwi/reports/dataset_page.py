"""Writes the dataset's page: what it holds, what was turned away and why, with samples of both to look at.

Beside a run's report its media lie in files; as a card of its own (`kiwi data card --html`) they are in the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from kiwi import __version__
from kiwi.configuration import RunConfiguration
from kiwi.reports import charts, figures, gallery, sections
from kiwi.reports.findings import Findings
from kiwi.reports.media import MediaFolder
from kiwi.reports.rendering import write_page

if TYPE_CHECKING:
    import polars

    from kiwi.reports.dataset_samples import View

Json = dict[str, Any]

IN_REPORT = 6
VALUES = 12  # of a column that are named one by one
BINS = 24
WHOLE = ("frames a clip",)  # counted in whole numbers, so that parts of the axis must be whole as well
SCALES = {"score_overall": 10.0, "score_first_frame": 10.0}


@dataclass(frozen=True)
class Balance:
    """One value of a column and its rows, split by what they train as."""

    name: str
    quadruplet: int
    instruction: int
    nothing: int

    @property
    def rows(self) -> int:
        return self.quadruplet + self.instruction + self.nothing


@dataclass(frozen=True)
class Spread:
    """How a figure spreads. `bounds` says from where and up to where a row passes, in words; "" if nothing asks."""

    name: str
    drawing: Markup
    rows: int
    bounds: str = ""
    middle: str = ""


@dataclass(frozen=True)
class Licences:
    """Rows by licence and source; what holds for all rows in use together; what may not be done with them."""

    rows: list[Json]
    terms: list[tuple[str, str]]
    forbidden: list[str]


@dataclass(frozen=True)
class DatasetPage:
    """All that the page shows. `home` is the report's address, "" for a page of its own."""

    title: str
    home: str
    facts: list[tuple[str, str]]
    funnel: sections.Funnel | None
    balances: list[tuple[str, list[Balance]]]
    media: list[Spread]
    resolutions: list[tuple[str, int]]
    spreads: list[Spread]
    quadruplets: list[gallery.Card]
    rejected: list[gallery.Card]
    licences: Licences | None
    curators: list[tuple[str, str, str, str]]
    limits: list[Markup]
    left_out: int = 0
    version: str = __version__
    written: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")


def write_dataset_page(found: Findings, media: MediaFolder) -> tuple[str, list[gallery.Card]]:
    """Writes <page>/dataset.html beside the report.

    Returns its address, and a few rejected samples of different reasons for the report itself.

    Raises:
        OSError, ValueError: the dataset's rows cannot be read.
    """
    from kiwi.reports.dataset_samples import View

    if found.dataset_folder is None:
        raise ValueError("no dataset was assembled")
    manifest = found.manifest or {}
    said = {**manifest, **(found.dataset or {}), "files": manifest.get("files", [])}  # publishing counts its own files
    drawn = sections.funnel(found)
    page, moving = _page(said, drawn, View(found.dataset_folder, media), dataset_facts(found), "index.html")
    write_page(media.page / "dataset.html", "dataset.html.j2", page)
    return "dataset.html", moving[:IN_REPORT]


def write_dataset_card(folder: Path, path: Path, version: str = "") -> Path:
    """Writes the page of a dataset's folder as one file that needs no other, of about 16 MB at most; returns its path.

    Args:
        version: under which it was published, for the title.

    Raises:
        ManifestError: the folder is no dataset, or a part of its rows is missing.
        UsageError: the path is a folder.
    """
    from kiwi.dataset.manifest import read_manifest
    from kiwi.errors import UsageError
    from kiwi.reports.dataset_samples import WITHIN, View
    from kiwi.reports.embedding import EmbeddedMedia

    if path.is_dir():
        raise UsageError(f"--html {path} is a folder", "name a file, such as card.html")
    said = {**read_manifest(folder), "version": version}
    media = EmbeddedMedia()
    drawn = sections.drawn_funnel(said.get("funnel") or [], said)
    page, _ = _page(said, drawn, View(folder, media, WITHIN), _facts(said, _source(said)), "")
    write_page(path, "dataset.html.j2", replace(page, left_out=media.left_out))
    return path


def _page(
    said: Json, drawn: sections.Funnel | None, view: View, facts: list[tuple[str, str]], home: str
) -> tuple[DatasetPage, list[gallery.Card]]:
    """The page, and the first card of each reason that can be seen."""
    from kiwi.dataset import card
    from kiwi.reports import dataset_samples as samples

    rows = samples.with_part(_parts(view.folder, said))
    balances = _balances(rows)
    kinds = [each.name for each in balances.get("edit_type", []) if each.quadruplet]
    kept = samples.kept_rows(rows, ["" if name == NOT_STATED else name for name in kinds])
    gone = samples.gone_rows(rows, {**said.get("rejected", {}), **said.get("failed", {})})
    picked = [*kept, *(row for each in gone for row in each.shown)]
    view = replace(view, references=samples.references_of(picked))
    quadruplets = [samples.card(row, view, figures.words(row["edit_type"] or row["task"])) for row in kept]
    rejected = samples.gone_cards(gone, view)
    statistics = said.get("statistics")
    page = DatasetPage(
        title=str(said.get("version") or ("Dataset, not published yet" if home else "Dataset card")),
        home=home,
        facts=facts,
        funnel=drawn,
        balances=[(title, _shortened(balances[column])) for title, column in COLUMNS if column in balances],
        media=_media(rows),
        resolutions=list((statistics or {}).get("resolutions", {}).items())[:VALUES],
        spreads=_spreads(rows, said),
        quadruplets=quadruplets,
        rejected=[each for _, cards in rejected for each in cards],
        licences=_licences(said) if statistics else None,
        curators=card.curator_rows(said) if said.get("curators") else [],
        limits=[_ticked(sentence) for sentence in card.known_limits(said)] if statistics else [],
    )
    return page, [each for _, cards in rejected for each in cards[:1] if each.shown]


NOT_STATED = "not stated"
COLUMNS = (("Task", "task"), ("Edit type", "edit_type"), ("Source", "source_dataset"), ("References", "ref_origin"))


def dataset_facts(found: Findings) -> list[tuple[str, str]]:
    """What the dataset is, in short: name and value, those that are known."""
    return _facts({**(found.manifest or {}), **(found.dataset or {})}, _source_of_run(found.configuration))


def _facts(said: Json, source: str) -> list[tuple[str, str]]:
    facts = [
        ("Version", str(said.get("version") or "")),
        ("Revision", figures.short(said.get("revision")) if said.get("revision") else ""),
        ("Digest", figures.short(said.get("digest"), 16) if said.get("digest") and not said.get("revision") else ""),
        ("Pairs listed", figures.count(said.get("pairs")) if said.get("pairs") is not None else ""),
        ("Quadruplets", figures.count(said.get("quadruplets")) if said.get("quadruplets") is not None else ""),
        ("Instruction only", figures.count(said.get("instruction")) if said.get("instruction") is not None else ""),
        ("Source clips in use", _played(said)),
        ("Source", source),
        ("Tasks", _tally(said.get("tasks"))),
        ("Licences", _tally(said.get("licenses") or said.get("licences"))),
        ("Curators", _named(said.get("curators"))),
    ]
    return [(name, value) for name, value in facts if value]


def _played(said: Json) -> str:
    seconds = figures.number((said.get("statistics") or {}).get("seconds_total"))
    return f"{figures.duration(seconds)} of video" if seconds else ""


def _source_of_run(configuration: RunConfiguration) -> str:
    source = configuration.source
    if source.kind == "pairs":
        return f"your own pairs: {source.pairs}"
    return _source({"parameters": {"source": source.model_dump(mode="json")}})


def _source(said: Json) -> str:
    """Where the pairs come from, as the manifest has it."""
    source = (said.get("parameters") or {}).get("source") or {}
    if source.get("kind") == "procedural":
        return (
            f"procedural, {source.get('level')}: {source.get('clips', 0):,} clips of {source.get('frames')} frames and "
            f"{source.get('images', 0):,} images, {source.get('size')}×{source.get('size')}"
        )
    if source.get("kind") == "collections":
        return ", ".join(str(each.get("adapter")) for each in source.get("collections") or [])
    return "the user's own pairs" if source.get("kind") == "pairs" else ""


def _tally(value: Any) -> str:
    if isinstance(value, dict):
        named = list(value.items())
        more = [f"{len(named) - VALUES:,} more"] if len(named) > VALUES else []
        shown = [f"{figures.words(name) or NOT_STATED} {figures.count(rows)}" for name, rows in named[:VALUES]]
        return " · ".join([*shown, *more])
    return " · ".join(str(each) for each in value) if isinstance(value, list) else ""


def _named(value: Any) -> str:
    if isinstance(value, dict) and len(value) > 1 and len({str(name) for name in value.values()}) == 1:
        return f"{_named(next(iter(value.values())))}, in every stage"
    if isinstance(value, dict):
        return " · ".join(f"{stage}: {_named(name)}" for stage, name in value.items())
    return " · ".join(str(each) for each in value) if isinstance(value, list) else str(value or "")


def _parts(folder: Path, said: Mapping[str, Any]) -> list[Path]:
    """The parts of the rows. Raises ManifestError where one is missing, or is no Parquet."""
    import polars as pl

    from kiwi.dataset.manifest import ManifestError

    parts = [folder / str(each["path"]) for each in said.get("files", []) if str(each["path"]).endswith(".parquet")]
    missing = next((part for part in parts if not part.is_file()), None if parts else folder / "rows")
    if missing is not None:
        raise ManifestError(f"{missing}: is not there", "pull or rebuild the dataset")
    for part in parts:
        try:
            pl.read_parquet_schema(part)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ManifestError(f"{part}: {str(error).splitlines()[0]}", "pull or rebuild the dataset") from error
    return parts


def _balances(rows: polars.LazyFrame) -> dict[str, list[Balance]]:
    """The values of each column of COLUMNS that the rows have, most frequent first; references of quadruplets alone."""
    from kiwi.dataset.statistics import balance

    found = {}
    there = set(rows.collect_schema().names())
    for _, column in COLUMNS:
        if column not in there:
            continue
        counted = balance(rows, column)
        if column == "ref_origin":
            counted = {name: each for name, each in counted.items() if name and each["quadruplet"]}
        found[column] = [
            Balance(name or NOT_STATED, each["quadruplet"], each["instruction"], each["nothing"])
            for name, each in counted.items()
        ]
    return {column: values for column, values in found.items() if values}


def _shortened(values: list[Balance]) -> list[Balance]:
    """The first VALUES, and the others as one."""
    if len(values) <= VALUES:
        return values
    rest = values[VALUES - 1 :]
    sums = (sum(getattr(each, kind) for each in rest) for kind in ("quadruplet", "instruction", "nothing"))
    return [*values[: VALUES - 1], Balance(f"{len(rest):,} others", *sums)]


def _media(rows: polars.LazyFrame) -> list[Spread]:
    """Figure 4 (b): frames and seconds of the clips in use, and their frames a second."""
    import polars as pl

    from kiwi.dataset.statistics import USED

    videos = rows.filter(USED & (pl.col("media") == "video") & (pl.col("fps") > 0))
    measured = (
        ("frames a clip", pl.col("frames").cast(pl.Float64), "frames"),
        ("seconds a clip", pl.col("frames") / pl.col("fps"), "s"),
        ("frames a second", pl.col("fps"), ""),
    )
    spreads = [_spread(videos, name, column, None, unit) for name, column, unit in measured]
    return [spread for spread in spreads if spread is not None]


def _spreads(rows: polars.LazyFrame, said: Mapping[str, Any]) -> list[Spread]:
    """How each stored score spreads, with the run's thresholds where they apply."""
    import polars as pl

    from kiwi.curation.thresholds import THRESHOLDS, run_values

    values = run_values(said.get("parameters") or {})
    bounds: dict[str, dict[bool, float]] = {}
    for each in THRESHOLDS:
        value = values[each.name]
        if value is not None and not (each.at_least and value == 0):
            bounds.setdefault(each.column, {})[each.at_least] = value
    schema = rows.collect_schema()
    spreads = []
    for name in schema.names():
        shown = name.startswith(("score_", "verify_")) or name in ("region_area", "mask_area")
        if shown and schema[name].is_numeric():
            spreads.append(_spread(rows, name, pl.col(name).cast(pl.Float64), bounds.get(name, {}), ""))
    return [spread for spread in spreads if spread is not None]


def _spread(
    rows: polars.LazyFrame, name: str, column: polars.Expr, bounds: Mapping[bool, float] | None, unit: str
) -> Spread | None:
    """A column as a histogram; None where nothing was measured, or where a score is the same in all rows."""
    from kiwi.dataset.statistics import collected, histogram

    known = rows.filter(column.is_finite())
    seen = collected(known, column.min().alias("low"), column.max().alias("high"), column.median().alias("middle"))
    low, high, middle = seen.row(0)
    if low is None or (bounds is not None and low == high and not bounds):
        return None
    low, high = _range(low, high, name)
    counts = histogram(known, column, low, high, BINS)
    floor, ceiling = (bounds or {}).get(True), (bounds or {}).get(False)
    said = [f"≥ {floor:g}"] if floor is not None else []
    said += [f"≤ {ceiling:g}"] if ceiling is not None else []
    drawing = charts.histogram(counts, low, high, floor, ceiling)
    return Spread(name, drawing, sum(counts), ", ".join(said), f"median {middle:,.3g} {unit}".strip())


def _range(low: float, high: float, name: str) -> tuple[float, float]:
    """The axis: a score's own scale, else from nothing to a little over the largest value."""
    if name in SCALES and low >= 0 and high <= SCALES[name]:
        return 0.0, SCALES[name]
    if low >= 0 and high <= 1 and name.startswith(("score_", "verify_", "region_", "mask_")):
        return 0.0, 1.0
    if name in WHOLE:
        return 0.0, float(BINS * (int(high) // BINS + 1))
    reach = max(high, 0.0) - min(low, 0.0) or 1.0
    return min(low, 0.0), max(high, 0.0) + 0.05 * reach


def _licences(said: Json) -> Licences:
    from kiwi.dataset.card import licence_rows, licences_in_use
    from kiwi.dataset.licences import added_up, forbidden

    used = licences_in_use(said)
    terms = []
    for sentence in added_up(used) if used else ["**Nothing in use.** No row trains as anything."]:
        found = re.fullmatch(r"\*\*(.+?)\.\*\* (.*)", sentence, re.DOTALL)
        terms.append((found[1], found[2]) if found else ("", sentence))
    return Licences(licence_rows(said), terms, forbidden(used))


def _ticked(sentence: str) -> Markup:
    """A sentence of ours whose names stand in backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))  # nosec B704 - escaped first
