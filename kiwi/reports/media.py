"""What a page plays and shows, laid beside it: files under the page's own names, each clip with its first frame."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

VIDEO = (".mp4", ".webm", ".mov")
SMALL_SIDE = 128  # pixels: up to here a still is kept exactly, as PNG; JPEG would blur what is shown enlarged
AS_IT_IS = 120_000  # bytes up to which a clip is small as it is
SMALL_PIXELS, SMALL_FRAMES, SMALL_QUALITY = 384 * 216, 24, 27  # of a clip that is larger: a frame, frames, H.264
MOST_AHEAD = 200  # clips


@dataclass(frozen=True)
class Shown:
    """A clip as a page shows it: video and first frame, their size in pixels, and why if it cannot be shown."""

    video: str = ""
    still: str = ""
    size: tuple[int, int] = (1, 1)
    note: str = ""


@dataclass(frozen=True)
class SmallClip:
    """A clip as it goes into a page of one file, its first frame with that file's ending, and their size in pixels."""

    video: bytes
    still: bytes
    ending: str
    size: tuple[int, int]


class PageMedia(Protocol):
    """Where what a page plays and shows is put: beside it, or into it. "" stands for what is not there or too much."""

    def write(self, content: bytes, name: str) -> str:
        """The address under which the page finds `content`."""
        ...

    def clip(self, path: Path, name: str) -> Shown:
        """A clip that browsers play, with its first frame; empty if it is not there."""
        ...

    def picture(self, path: Path, name: str) -> Shown:
        """A picture as `still`; empty if it is not there."""
        ...


@dataclass
class MediaFolder:
    """`<page>/media`: files are copied in under the page's own names, and what no page names is removed at the end."""

    page: Path
    used: set[str] = field(default_factory=set)
    ahead: Mapping[Path, SmallClip | None] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.page / "media"

    def clip(self, path: Path, name: str) -> Shown:
        file = self.copy(path, name)
        if not file:
            return Shown()
        still = self._newer(name, path) or self._first_frame(path, name)
        return Shown(file, still, size_of(self.page / still) if still else (1, 1))

    def picture(self, path: Path, name: str) -> Shown:
        file = self.copy(path, name)
        return Shown("", file, size_of(self.page / file)) if file else Shown()

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

    def sweep(self) -> None:
        """Removes what an earlier report showed and this one does not."""
        for path in self.folder.glob("*") if self.folder.exists() else ():
            if path.name not in self.used:
                path.unlink()

    def _newer(self, name: str, than: Path) -> str:
        """A first frame that an earlier report took of this very clip."""
        for ending in (".png", ".jpg"):
            made = self.folder / f"{name}{ending}"
            if made.exists() and made.stat().st_mtime_ns >= than.stat().st_mtime_ns:
                return self._mark(made)
        return ""

    def _first_frame(self, path: Path, name: str) -> str:
        """What a page shows until the video plays, and on paper; "" if the video cannot be decoded."""
        small = self.ahead.get(path)
        made = (small.still, small.ending) if small else first_frame(path)
        return self.write(made[0], f"{name}{made[1]}") if made else ""

    def _mark(self, target: Path) -> str:
        self.used.add(target.name)
        return f"media/{target.name}"


def small_clips(paths: Iterable[Path], threads: int) -> dict[Path, SmallClip | None]:
    """Clips made small side by side: decoding them is most of the work of a page."""
    listed = list(dict.fromkeys(path for path in paths if path.is_file()))[:MOST_AHEAD]
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        return dict(zip(listed, pool.map(small_clip, listed), strict=True))


def small_clip(path: Path) -> SmallClip | None:
    """A clip, smaller and shorter where its file is large; None for what cannot be decoded."""
    from kiwi.media import MediaError, decode, encode_video

    as_it_is = path.stat().st_size <= AS_IT_IS and path.suffix.lower() == ".mp4"
    try:
        clip = decode(path, pixel_budget=SMALL_PIXELS, max_frames=1 if as_it_is else SMALL_FRAMES, threads=1)
    except MediaError:
        return None
    still, ending = still_bytes(clip.frames[0])
    video = path.read_bytes() if as_it_is else encode_video(None, clip.frames, clip.fps, crf=SMALL_QUALITY)
    height, width = clip.frames.shape[1:3]
    return SmallClip(video, still, ending, (width, height))


def first_frame(path: Path) -> tuple[bytes, str] | None:
    """A clip's first frame as a file's bytes and ending; None for what cannot be decoded."""
    from kiwi.media import MediaError, decode

    try:
        return still_bytes(decode(path, pixel_budget=SMALL_PIXELS, max_frames=1, threads=1).frames[0])
    except MediaError:
        return None


def still_bytes(image: Any) -> tuple[bytes, str]:
    """A picture uint8 [H,W,3] as a file's bytes and ending: PNG where it has few pixels, else JPEG."""
    from kiwi.media import png_bytes

    return (png_bytes(image), ".png") if max(image.shape[:2]) <= SMALL_SIDE else (jpeg_bytes(image), ".jpg")


def jpeg_bytes(image: Any) -> bytes:
    """A picture uint8 [H,W,3] as JPEG."""
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=82)
    return data.getvalue()


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its header; (1, 1) where it has none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError):
        return (1, 1)
