"""Picks the edits worth looking at, and lays what the pages play and show beside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kiwi.reports.figures import number, slug
from kiwi.reports.findings import Json

ROLES = (("source", "Source"), ("reference", "Reference"), ("result", "Result"), ("truth", "Ground truth"))
RANKS = ("best", "median", "worst")
SMALL_WIDTH = 128
VIDEO = (".mp4", ".webm", ".mov")


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
        return self.size[0] <= SMALL_WIDTH

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


@dataclass
class MediaFolder:
    """`<page>/media`: files are copied in under the page's own names, and what no page names is removed at the end."""

    page: Path
    used: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.page / "media"

    def copy(self, path: Path, name: str) -> str:
        """Copies `path` (atomically) as media/<name><its extension>; "" if it is not there."""
        if not path.is_file():
            return ""
        target = self.folder / f"{name}{path.suffix.lower()}"
        before, now = target.stat() if target.exists() else None, path.stat()
        if before is None or (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.tmp")
            shutil.copy2(path, temporary)
            os.replace(temporary, target)
        return self._mark(target)

    def write(self, content: bytes, name: str) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / name
        temporary = target.with_name(f".{name}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, target)
        return self._mark(target)

    def known(self, name: str) -> str:
        """The address of a file that an earlier report wrote under a name that stands for its content; else ""."""
        return self._mark(self.folder / name) if (self.folder / name).exists() else ""

    def size(self, address: str) -> tuple[int, int]:
        """Width and height of a PNG of the page, from its header."""
        if not address.endswith(".png"):
            return (1, 1)
        with open(self.page / address, "rb") as file:
            head = file.read(24)
        return (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))

    def sweep(self) -> None:
        """Removes what an earlier report showed and this one does not."""
        for path in self.folder.glob("*") if self.folder.exists() else ():
            if path.name not in self.used:
                path.unlink()

    def _mark(self, target: Path) -> str:
        self.used.add(target.name)
        return f"media/{target.name}"


def gain(sample: Json) -> float | None:
    """By how much an edit beats copying its source: in the edited region if measured, else over the frame [dB]."""
    for region in ("psnr_edit", "psnr_full"):
        mine, copied = number(sample.get(region)), number(sample.get(f"copy_{region}"))
        if mine is not None and copied is not None:
            return mine - copied
    return number(sample.get("overall"))


def chosen(samples: Sequence[Json]) -> list[tuple[str, Json]]:
    """The best, the median and the worst sample by `gain` among those that can be shown, each once.

    The median is the shown sample that stands nearest to the middle of all; ties fall to the smaller id.
    """
    known = [sample for sample in samples if gain(sample) is not None] or list(samples)
    ranked = sorted(known, key=lambda sample: (-(gain(sample) or 0.0), str(sample.get("id", ""))))
    shown = [place for place, sample in enumerate(ranked) if (sample.get("files") or {}).get("result")]
    if not shown:
        return []
    middle = min(shown, key=lambda place: (abs(place - len(ranked) // 2), place))
    picked = {shown[0]: "best", shown[-1]: "worst"}
    if len(shown) > 2 and middle not in picked:
        picked[middle] = "median"
    return [(picked[place], ranked[place]) for place in sorted(picked)]


def stage_tiles(sample: Json, folder: Path, media: MediaFolder) -> tuple[Tile, ...]:
    """Source, what each stage of training made of it, and the ground truth; () if no earlier stage edited it."""
    names = sorted(role for role in sample.get("files") or {} if role.startswith("stage"))
    if not names:
        return ()
    last = [] if len(names) > 2 else [("result", f"Stage {len(names) + 1}")]
    roles = [("source", "Source"), *((name, f"Stage {place + 1}") for place, name in enumerate(names)), *last]
    return edit_tiles(sample, folder, media, (*roles, ("truth", "Ground truth")))


def edit_tiles(
    sample: Json, folder: Path, media: MediaFolder, roles: Sequence[tuple[str, str]] = ROLES
) -> tuple[Tile, ...]:
    """Source, reference if there is one, result and ground truth of a sample, copied beside the page.

    Paths that lead out of the benchmark's folder are not followed.
    """
    files = sample.get("files") or {}
    name = f"{slug(sample.get('kind'))}-{slug(sample.get('id'))}"
    tiles = []
    for role, label in roles:
        path = (folder / str(files[role])).resolve() if files.get(role) else None
        inside = path is not None and path.is_relative_to(folder.resolve())
        file = media.copy(path, f"{name}-{role}") if path is not None and inside else ""
        poster = _poster(path, media, f"{name}-{role}") if file.endswith(VIDEO) and path is not None else ""
        if role != "reference" or files.get(role):
            tiles.append(Tile(role, label, file, poster, media.size(poster or file)))
    return tuple(tiles)


def _poster(path: Path, media: MediaFolder, name: str) -> str:
    """The first frame, which a page shows until the video plays, and on paper; "" if the video cannot be decoded."""
    from kiwi.media import MediaError, decode, png_bytes

    made = media.folder / f"{name}.png"
    if made.exists() and made.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return media.known(made.name)
    try:
        return media.write(png_bytes(decode(path, pixel_budget=640 * 360, max_frames=1).frames[0]), f"{name}.png")
    except MediaError:
        return ""
