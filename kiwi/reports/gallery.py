"""Picks the edits worth looking at, and turns them into cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kiwi.reports.figures import number, slug
from kiwi.reports.findings import Json
from kiwi.reports.media import SMALL_SIDE, VIDEO, PageMedia, Shown

ROLES = (
    ("source", "Source"),
    ("reference", "Reference"),
    ("result", "Result"),
    ("champion", "Champion"),
    ("truth", "Ground truth"),
)
OPTIONAL = ("reference", "champion", "truth")  # not every sample has them
RANKS = ("best", "median", "worst")


@dataclass(frozen=True)
class Tile:
    """One picture or video of a card. `file` is relative to the page, "" where there is none; `size` is in pixels."""

    role: str
    label: str
    file: str
    poster: str = ""
    size: tuple[int, int] = (1, 1)

    @property
    def small(self) -> bool:
        """Few pixels: they are shown as squares, not blurred."""
        return self.size[0] <= SMALL_SIDE

    @property
    def moves(self) -> bool:
        return self.file.endswith(VIDEO) or self.file.startswith("data:video/")

    @property
    def embedded(self) -> bool:
        """The file is in the page itself."""
        return self.file.startswith("data:")


@dataclass(frozen=True)
class Card:
    """One sample as the page shows it."""

    title: str
    prompt: str
    tiles: tuple[Tile, ...]
    gain: float | None = None
    facts: tuple[tuple[str, str], ...] = ()
    note: str = ""
    aside: str = ""

    @property
    def shown(self) -> tuple[Tile, ...]:
        """The tiles, if there is anything to be seen on one of them."""
        return self.tiles if any(tile.file for tile in self.tiles) else ()

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height that all tiles take: the first moving one's, else the first one's."""
        moving = [tile.size for tile in self.tiles if tile.moves] or [tile.size for tile in self.tiles if tile.file]
        return moving[0] if moving else (1, 1)


@dataclass(frozen=True)
class SampleRow:
    """One held-out sample in the list of all: its scores, or why it has none."""

    name: str
    kind: str
    prompt: str
    overall: float | None
    champion: float | None
    failure: str


def sample_rows(scores: Json | None, edits: Json | None) -> list[SampleRow]:
    """Every judged sample, the best first and those without a score last; [] for scores of an earlier version."""
    prompts = {str(each.get("id")): str(each.get("prompt") or "") for each in (edits or {}).get("samples") or []}
    failures = {str(each.get("id")): str(each.get("reason") or "") for each in (scores or {}).get("failures") or []}
    rows = []
    for each in (scores or {}).get("per_sample") or []:
        name, overall = str(each.get("id")), number(each.get("overall"))
        why = failures.get(name, "no score") if overall is None else ""
        champion = number(each.get("champion_overall"))
        rows.append(SampleRow(name, str(each.get("kind") or ""), prompts.get(name, ""), overall, champion, why))
    return sorted(rows, key=lambda row: (row.overall is None, -(row.overall or 0.0), row.name))


def gain(sample: Json) -> float | None:
    """By how much an edit beats copying its source: in the edited region if measured, else over the frame [dB]."""
    for region in ("psnr_edit", "psnr_full"):
        mine, copied = number(sample.get(region)), number(sample.get(f"copy_{region}"))
        if mine is not None and copied is not None:
            return mine - copied
    return None


def merit(sample: Json) -> float | None:
    """What samples of one kind are ranked by: `gain`, and without a ground truth the judge's mark [1 to 5]."""
    gained = gain(sample)
    return number(sample.get("overall")) if gained is None else gained


def chosen(samples: Sequence[Json]) -> list[tuple[str, Json]]:
    """The best, the median and the worst sample by `merit` among those that can be shown, each once.

    The median is the shown sample that stands nearest to the middle of all; ties fall to the smaller id.
    """
    known = [sample for sample in samples if merit(sample) is not None] or list(samples)
    ranked = sorted(known, key=lambda sample: (-(merit(sample) or 0.0), str(sample.get("id", ""))))
    shown = [place for place, sample in enumerate(ranked) if (sample.get("files") or {}).get("result")]
    if not shown:
        return []
    middle = min(shown, key=lambda place: (abs(place - len(ranked) // 2), place))
    picked = {shown[0]: "best", shown[-1]: "worst"}
    if len(shown) > 2 and middle not in picked:
        picked[middle] = "median"
    return [(picked[place], ranked[place]) for place in sorted(picked)]


def stage_tiles(sample: Json, folder: Path, media: PageMedia) -> tuple[Tile, ...]:
    """Source, what each stage of training made of it, and the ground truth; () if no earlier stage edited it."""
    names = sorted(role for role in sample.get("files") or {} if role.startswith("stage"))
    if not names:
        return ()
    last = [] if len(names) > 2 else [("result", f"Stage {len(names) + 1}")]
    roles = [("source", "Source"), *((name, f"Stage {place + 1}") for place, name in enumerate(names)), *last]
    return edit_tiles(sample, folder, media, (*roles, ("truth", "Ground truth")))


def edit_tiles(
    sample: Json, folder: Path, media: PageMedia, roles: Sequence[tuple[str, str]] = ROLES
) -> tuple[Tile, ...]:
    """Source, reference if there is one, result, the champion's result if it edited here, and ground truth of a sample.

    Paths that lead out of the benchmark's folder are not followed.
    """
    files = sample.get("files") or {}
    name = f"{slug(sample.get('kind'))}-{slug(sample.get('id'))}"
    return tuple(
        _tile(role, label, str(files.get(role) or ""), folder, media, f"{name}-{role}")
        for role, label in roles
        if role not in OPTIONAL or files.get(role)
    )


def clips_of(sample: Json, folder: Path) -> list[Path]:
    """The files of a sample's clips that `edit_tiles` shows."""
    files = sample.get("files") or {}
    paths = [_inside(str(files.get(role) or ""), folder) for role, _ in ROLES]
    return [path for path in paths if path is not None and path.suffix.lower() in VIDEO]


def _inside(file: str, folder: Path) -> Path | None:
    """Where a file lies; None for none, and for one outside the folder."""
    path = (folder / file).resolve()
    return path if file and path.is_relative_to(folder.resolve()) else None


def _tile(role: str, label: str, file: str, folder: Path, media: PageMedia, name: str) -> Tile:
    path = _inside(file, folder)
    if path is None:
        return Tile(role, label, "")
    moves = path.suffix.lower() in VIDEO
    shown: Shown = media.clip(path, name) if moves else media.picture(path, name)
    if shown.video:
        return Tile(role, label, shown.video, shown.still, shown.size)
    return Tile(role, label, shown.still, "", shown.size)
