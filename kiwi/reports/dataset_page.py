"""Writes the dataset's page: what it holds, what was turned away and why, with samples of both to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from kiwi import __version__
from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.reports import charts, figures, gallery, sections
from kiwi.reports.findings import Findings
from kiwi.reports.rendering import write_page

if TYPE_CHECKING:
    import polars

    from kiwi.media import Clip

Row = dict[str, Any]

VIEW_PIXELS = 640 * 360
VIEW_FRAMES = 48
SMALL_SIDE, ENLARGED_SIDE = 128, 192
QUADRUPLETS, EACH_REASON, REJECTED, IN_REPORT = 12, 2, 18, 6


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
    name: str
    drawing: Markup
    rows: int
    threshold: float | None


@dataclass(frozen=True)
class DatasetPage:
    """All that the page shows."""

    title: str
    facts: list[tuple[str, str]]
    funnel: sections.Funnel | None
    balances: list[tuple[str, list[Balance]]]
    spreads: list[Spread]
    quadruplets: list[gallery.Card]
    rejected: list[gallery.Card]
    version: str = __version__
    written: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")


@dataclass(frozen=True)
class View:
    """Where the rows' media come from, and where the page's go.

    Attributes:
        references: reference images of the rows shown, by iid.
    """

    folder: Path
    media: gallery.MediaFolder
    references: dict[str, bytes]

    def clip(self, member: str, name: str) -> tuple[tuple[str, str], str]:
        """A dataset clip as browsers play it, with its first frame; the clip's own bytes may be lossless RGB.

        Returns ((video, poster), "") or (("", ""), why it cannot be shown).
        """
        from kiwi.dataset.reader import open_media
        from kiwi.media import decode, encode_video, png_bytes

        if not member:
            return ("", ""), "its media could not be read"
        video, poster = self.media.known(f"{name}.mp4"), self.media.known(f"{name}.png")
        if poster:
            return ((video, poster) if video else (poster, "")), ""
        try:
            clip = decode(open_media(self.folder, member), pixel_budget=VIEW_PIXELS, max_frames=VIEW_FRAMES)
        except (KiwiError, OSError) as error:
            return ("", ""), f"cannot be shown: {str(error).splitlines()[0]}"
        video = ""
        if len(clip.frames) > 1:
            video = self.media.write(encode_video(None, _enlarged(clip), clip.fps), f"{name}.mp4")
        poster = self.media.write(png_bytes(clip.frames[0]), f"{name}.png")
        return ((video, poster) if video else (poster, "")), ""


def write_dataset_page(found: Findings, media: gallery.MediaFolder) -> tuple[str, list[gallery.Card]]:
    """Writes <page>/dataset.html beside the report.

    Returns its address, and a few rejected samples of different reasons for the report itself.

    Raises:
        OSError, ValueError: the dataset's rows cannot be read.
    """
    if found.dataset_folder is None:
        raise ValueError("no dataset was assembled")
    rows = _rows(found.dataset_folder)
    kept, gone = _kept(rows), _gone(rows)
    picked = [*kept, *(row for _, _, some in gone for row in some)]
    view = View(found.dataset_folder, media, _references(found.dataset_folder, [str(row["iid"]) for row in picked]))
    rejected = [
        (reason, [replace(_card(row, view, figures.words(reason)), aside=_rows_said(amount)) for row in some])
        for reason, amount, some in gone
    ]
    said = {**(found.manifest or {}), **(found.dataset or {})}
    page = DatasetPage(
        title=str(said.get("version") or "Dataset, not published yet"),
        facts=dataset_facts(found),
        funnel=sections.funnel(found),
        balances=[(title, _balance(rows, column)) for title, column in
                  (("Task", "task"), ("Edit type", "edit_type"), ("Licence", "license"), ("Source", "source_dataset"))
                  if column in rows.columns],
        spreads=_spreads(rows, found),
        quadruplets=[_card(row, view, figures.words(row["edit_type"])) for row in kept],
        rejected=[card for _, cards in rejected for card in cards],
    )  # fmt: skip
    write_page(media.page / "dataset.html", "dataset.html.j2", page)
    moving = [card for _, cards in rejected for card in cards[:1] if card.shown]
    return "dataset.html", moving[:IN_REPORT]


def dataset_facts(found: Findings) -> list[tuple[str, str]]:
    """What the dataset is, in short: name and value, those that are known."""
    said = {**(found.manifest or {}), **(found.dataset or {})}
    facts = [
        ("Version", str(said.get("version") or "")),
        ("Revision", figures.short(said.get("revision")) if said.get("revision") else ""),
        ("Pairs listed", figures.count(said.get("pairs")) if said.get("pairs") is not None else ""),
        ("Quadruplets", figures.count(said.get("quadruplets")) if said.get("quadruplets") is not None else ""),
        ("Instruction only", figures.count(said.get("instruction")) if said.get("instruction") is not None else ""),
        ("Source", _source(found.configuration)),
        ("Tasks", _tally(said.get("tasks"))),
        ("Licences", _tally(said.get("licenses") or said.get("licences"))),
        ("Curators", _named(said.get("curators"))),
    ]
    return [(name, value) for name, value in facts if value]


def _source(configuration: RunConfiguration) -> str:
    source = configuration.source
    if source.kind == "pairs":
        return f"your own pairs: {source.pairs}"
    return (
        f"procedural, {source.level}: {source.clips:,} clips of {source.frames} frames and {source.images:,} images, "
        f"{source.size}×{source.size}"
    )


def _tally(value: Any) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{figures.words(name)} {figures.count(rows)}" for name, rows in value.items())
    return " · ".join(str(each) for each in value) if isinstance(value, list) else ""


def _named(value: Any) -> str:
    if isinstance(value, dict) and len(value) > 1 and len({str(name) for name in value.values()}) == 1:
        return f"{_named(next(iter(value.values())))}, in every stage"
    if isinstance(value, dict):
        return " · ".join(f"{stage}: {_named(name)}" for stage, name in value.items())
    return " · ".join(str(each) for each in value) if isinstance(value, list) else str(value or "")


def _rows(folder: Path) -> polars.DataFrame:
    """The rows of a dataset without their images, in its own order. Raises ManifestError."""
    from kiwi.dataset.reader import read_manifest, read_rows

    columns = dict(read_manifest(folder)["columns"])
    return read_rows(folder, [name for name in columns if name != "ref_image_bytes"])


def _balance(rows: polars.DataFrame, column: str) -> list[Balance]:
    tally: dict[str, dict[str, int]] = {}
    for row in rows.group_by(column, "trains_as").len().iter_rows(named=True):
        tally.setdefault(str(row[column] or "not stated"), {})[str(row["trains_as"])] = int(row["len"])
    found = [
        Balance(name, each.get("quadruplet", 0), each.get("instruction", 0), each.get("nothing", 0))
        for name, each in tally.items()
    ]
    return sorted(found, key=lambda each: (-each.rows, each.name))


def _spreads(rows: polars.DataFrame, found: Findings) -> list[Spread]:
    """How each stored score spreads, with its threshold where one applies."""
    curation = found.configuration.curation
    thresholds = {
        "score_overall": curation.min_score,
        "mask_area": curation.min_region,
        "verify_consistency": curation.min_verify,
    }
    spreads = []
    for name in rows.columns:
        if not (name.startswith(("score_", "verify_")) or name == "mask_area"):
            continue
        values = [float(value) for value in rows[name].drop_nulls() if figures.number(value) is not None]
        if not values or max(values) == min(values):
            continue
        low, high = (
            (0.0, 1.0 if max(values) <= 1 else 10.0)
            if min(values) >= 0 and max(values) <= 10
            else (min(values), max(values))
        )
        threshold = thresholds.get(name)
        spreads.append(Spread(name, charts.histogram(values, low, high, threshold), len(values), threshold))
    return spreads


def _kept(rows: polars.DataFrame) -> list[Row]:
    """Quadruplets to show: the edit types in turn, each in the dataset's own order."""
    by_type: dict[str, list[Row]] = {}
    for row in rows.filter(rows["trains_as"] == "quadruplet").iter_rows(named=True):
        by_type.setdefault(str(row["edit_type"] or row["task"]), []).append(row)
    turns = [(place, kind, row) for kind, each in by_type.items() for place, row in enumerate(each[:QUADRUPLETS])]
    return [row for _, _, row in sorted(turns, key=lambda turn: (turn[0], turn[1]))[:QUADRUPLETS]]


def _gone(rows: polars.DataFrame) -> list[tuple[str, int, list[Row]]]:
    """Every reason with its rows, the most frequent first, and the first rows of each to show."""
    gone = rows.filter(rows["status"] != "kept")
    counted = sorted(gone.group_by("reason").len().iter_rows(), key=lambda each: (-each[1], str(each[0])))
    shown, left = [], REJECTED
    for reason, amount in counted:
        taken = list(gone.filter(gone["reason"] == reason).head(min(EACH_REASON, left)).iter_rows(named=True))
        left -= len(taken)
        shown.append((str(reason), int(amount), taken))
    return shown


def _references(folder: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The reference images of some rows, by iid."""
    from kiwi.dataset.reader import read_rows

    if not wanted:
        return {}
    images = read_rows(folder, ["iid", "ref_image_bytes"])
    found = images.filter(images["iid"].is_in(list(wanted)))
    return {str(iid): bytes(image) for iid, image in found.iter_rows() if image}


def _rows_said(amount: int) -> str:
    return f"{amount:,} row{'s' if amount != 1 else ''}"


def _card(row: Row, view: View, title: str) -> gallery.Card:
    iid = str(row["iid"])
    source, note = view.clip(str(row["src_video"] or ""), f"row-{figures.slug(iid)}-source")
    target, other = view.clip(str(row["tgt_video"] or ""), f"row-{figures.slug(iid)}-target")
    image = view.references.get(iid)
    reference = view.media.write(image, f"row-{figures.slug(iid)}-reference.png") if image else ""
    tiles = [
        gallery.Tile("source", "Source", *source, view.media.size(source[1] or source[0])),
        gallery.Tile("truth", "Target", *target, view.media.size(target[1] or target[0])),
    ]
    if reference:
        tiles.insert(1, gallery.Tile("reference", "Reference", reference, "", view.media.size(reference)))
    facts = [("stage", str(row.get("stage") or ""))] if row.get("status") != "kept" else []
    if row.get("status") != "kept" and row.get("trains_as") == "instruction":
        facts.append(("still trains as an", "instruction"))
    if reference and row.get("ref_origin"):
        facts.append(("reference", figures.words(row["ref_origin"])))
    detail = str(row.get("detail") or "")
    return gallery.Card(title, str(row.get("prompt") or ""), tuple(tiles), None, tuple(facts), detail or note or other)


def _enlarged(clip: Clip) -> Any:
    """Small clips by whole factors: players halve the colour resolution, which a clip of 64 pixels cannot spare."""
    side = max(clip.frames.shape[1:3])
    factor = max(ENLARGED_SIDE // side, 1) if side <= SMALL_SIDE else 1
    return clip.frames.repeat(factor, axis=1).repeat(factor, axis=2)
