"""Picks a dataset's samples that are worth a look, and turns them into cards with clips that browsers play.

Rows are picked from a scan, without references; the references of the picked ones alone are read, part by part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from kiwi.errors import KiwiError
from kiwi.reports import figures, gallery
from kiwi.reports.media import SMALL_SIDE, MediaFolder, PageMedia, Shown, jpeg_bytes, size_of

if TYPE_CHECKING:
    from kiwi.media import Clip

Row = dict[str, Any]

QUADRUPLETS, EACH_REASON, REJECTED = 12, 2, 24
ENLARGED_SIDE = 192
PICKED = (
    "position", "iid", "edit_type", "task", "prompt", "src_video", "tgt_video", "status", "stage", "reason", "detail",
    "trains_as", "ref_origin", "source_dataset", "license", "score_overall", "score_name", "verify_consistency",
)  # fmt: skip
_PART = "_part"


@dataclass(frozen=True)
class Look:
    """How much of a clip a page shows: pixels a frame, frames, H.264 quality; stills as JPEG where they are large."""

    pixels: int = 640 * 360
    frames: int = 48
    quality: int = 18
    jpeg: bool = False


BESIDE = Look()
WITHIN = Look(384 * 216, 40, 27, True)


@dataclass(frozen=True)
class View:
    """Where the rows' media come from, and where the page's go.

    Attributes:
        references: reference images of the rows shown, by position.
    """

    folder: Path
    media: PageMedia
    look: Look = BESIDE
    references: Mapping[int, bytes] = field(default_factory=dict)

    def clip(self, member: str, name: str) -> Shown:
        """A dataset clip as browsers play it, with its first frame; the clip's own bytes may be lossless RGB."""
        from kiwi.dataset.reader import open_media
        from kiwi.media import decode, encode_video

        if not member:
            return Shown(note="its media are not in the dataset")
        known = self._known(name)
        if known:
            return known
        try:
            data = open_media(self.folder, member)
            clip = decode(data, pixel_budget=self.look.pixels, max_frames=self.look.frames)
        except (KiwiError, OSError) as error:
            said = str(error).splitlines()[0].replace(f"{self.folder}/", "")  # no paths of this machine
            return Shown(note=f"cannot be shown: {said}")
        video = ""
        if len(clip.frames) > 1:
            encoded = encode_video(None, _enlarged(clip), clip.fps, crf=self.look.quality)
            video = self.media.write(encoded, f"{name}.mp4")
        height, width = clip.frames.shape[1:3]
        return Shown(video, self.still(clip.frames[0], name), (width, height))

    def reference(self, position: int, name: str) -> Shown:
        """The reference of a row, if it has one and it decodes."""
        from kiwi.media import decode_image, resize_to_budget

        data = self.references.get(position)
        if not data:
            return Shown()
        try:
            image = decode_image(data)
        except KiwiError as error:
            return Shown(note=f"its reference cannot be shown: {error.message}")
        small = resize_to_budget(image[None], self.look.pixels)[0]
        return Shown("", self.still(small, name), (small.shape[1], small.shape[0]))

    def still(self, image: Any, name: str) -> str:
        """A picture uint8 [H,W,3] as PNG, or as JPEG where the look asks for it and the pixels are too many."""
        from kiwi.media import png_bytes

        if not self.look.jpeg or max(image.shape[:2]) <= SMALL_SIDE:
            return self.media.write(png_bytes(image), f"{name}.png")
        return self.media.write(jpeg_bytes(image), f"{name}.jpg")

    def _known(self, name: str) -> Shown | None:
        """What an earlier page beside this one wrote under a name that stands for its content."""
        if not isinstance(self.media, MediaFolder):
            return None
        video, still = self.media.known(f"{name}.mp4"), self.media.known(f"{name}.png")
        return Shown(video, still, size_of(self.media.page / still)) if still else None


@dataclass(frozen=True)
class Gone:
    """A reason, the rows that left for it, and the first of them."""

    reason: str
    rows: int
    shown: list[Row]


def with_part(parts: Sequence[Path]) -> pl.LazyFrame:
    """A dataset's rows as a scan that knows which part each lies in."""
    return pl.scan_parquet(list(parts), include_file_paths=_PART)


def kept_rows(rows: pl.LazyFrame, kinds: Sequence[str]) -> list[Row]:
    """Quadruplets to show: the given edit types in turn, each in the dataset's own order."""
    turns = []
    shown = list(kinds)[:QUADRUPLETS]
    for kind in shown:
        each = -(-QUADRUPLETS // len(shown))
        quadruplets = (pl.col("trains_as") == "quadruplet") & (pl.col("edit_type").fill_null("") == kind)
        turns += [(place, row) for place, row in enumerate(_first(rows, quadruplets, each))]
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])][:QUADRUPLETS]


def gone_rows(rows: pl.LazyFrame, reasons: Mapping[str, int]) -> list[Gone]:
    """Every reason with its rows, the most frequent first, and the first rows of each to show, those with media first.

    Args:
        reasons: rows by reason, rejected and failed together.
    """
    left = REJECTED
    found: list[Gone] = []
    for reason, amount in sorted(reasons.items(), key=lambda each: (-each[1], each[0])):
        wanted = min(EACH_REASON, left)
        some: list[Row] = []
        for has_media in (pl.col("src_video") != "", pl.col("src_video") == ""):
            gone = (pl.col("status") != "kept") & (pl.col("reason") == reason) & has_media
            some += _first(rows, gone, wanted - len(some)) if len(some) < wanted else []
        left -= len(some)
        found.append(Gone(reason, amount, some))
    return found


def _first(rows: pl.LazyFrame, which: pl.Expr, count: int) -> list[Row]:
    there = set(rows.collect_schema().names())
    columns = [name for name in (*PICKED, _PART) if name in there]
    return rows.filter(which).select(columns).head(count).collect(engine="streaming").to_dicts()


def references_of(rows: Sequence[Row]) -> dict[int, bytes]:
    """The reference images of picked rows by position; other rows' are skipped over."""
    found: dict[int, bytes] = {}
    for part in sorted({str(row[_PART]) for row in rows}):
        wanted = [row["position"] for row in rows if row[_PART] == part]
        images = pl.scan_parquet(part).filter(pl.col("position").is_in(wanted)).select("position", "ref_image_bytes")
        found |= {place: bytes(image) for place, image in images.collect().iter_rows() if image}
    return found


def card(row: Row, view: View, title: str) -> gallery.Card:
    """One row: source, reference if there is one, and target, in step; its instruction, figures and decision."""
    name = f"row-{figures.slug(row['iid'])}"
    source = view.clip(str(row["src_video"] or ""), f"{name}-source")
    target = view.clip(str(row["tgt_video"] or ""), f"{name}-target")
    tiles = [_tile("source", "Source", source), _tile("truth", "Target", target)]
    reference = view.reference(row["position"], f"{name}-reference")
    if reference.still:
        tiles.insert(1, _tile("reference", "Reference", reference))
    note = next((each.note for each in (source, target, reference) if each.note), "")
    detail = str(row.get("detail") or "")
    said = " · ".join(each for each in (detail, note) if each)
    return gallery.Card(
        title, str(row.get("prompt") or ""), tuple(tiles), None, _facts(row, bool(reference.still)), said
    )


def gone_cards(gone: Sequence[Gone], view: View) -> list[tuple[str, list[gallery.Card]]]:
    """The cards of rows that left, by reason; each says how many there are."""
    told = []
    for each in gone:
        cards = [card(row, view, figures.words(each.reason)) for row in each.shown]
        told.append((each.reason, [replace(one, aside=_amount(each.rows)) for one in cards]))
    return told


def _facts(row: Row, with_reference: bool) -> tuple[tuple[str, str], ...]:
    facts = [("from", str(row.get("source_dataset") or ""))]
    if row.get("status") != "kept":
        facts.append(("left at", figures.words(row.get("stage") or "")))
        facts.append(("still trains as", "instruction" if row.get("trains_as") == "instruction" else ""))
    if with_reference:
        facts.append(("reference", figures.words(row.get("ref_origin") or "")))
    score, consistency = figures.number(row.get("score_overall")), figures.number(row.get("verify_consistency"))
    if score is not None:
        facts.append((figures.words(row.get("score_name") or "score"), figures.decimal(score, 1)))
    if consistency is not None:
        facts.append(("consistency", figures.decimal(consistency)))
    return tuple((name, value) for name, value in facts if value)


def _tile(role: str, label: str, shown: Shown) -> gallery.Tile:
    if shown.video:
        return gallery.Tile(role, label, shown.video, shown.still, shown.size)
    return gallery.Tile(role, label, shown.still, "", shown.size)


def _amount(rows: int) -> str:
    return f"{rows:,} row{'s' if rows != 1 else ''}"


def _enlarged(clip: Clip) -> Any:
    """Small clips by whole factors: players halve the colour resolution, which a clip of 64 pixels cannot spare."""
    side = max(clip.frames.shape[1:3])
    factor = max(ENLARGED_SIDE // side, 1) if side <= SMALL_SIDE else 1
    return clip.frames.repeat(factor, axis=1).repeat(factor, axis=2)
