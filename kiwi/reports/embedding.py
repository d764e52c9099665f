"""Puts what a page shows into the page itself, as data addresses, within a bound on its size."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kiwi.reports.media import SMALL_PIXELS, Shown, SmallClip, small_clip, still_bytes

BUDGET = 12_000_000  # bytes of media, before base64 adds a third
CLIPS = 0.8  # the share of it that clips may take, so that stills of every sample still fit
_TYPES = {".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg"}


@dataclass
class EmbeddedMedia:
    """Media by their addresses in the page. What does not fit any more is left out and counted."""

    budget: int = BUDGET
    used: int = 0
    left_out: int = 0
    ahead: Mapping[Path, SmallClip | None] = field(default_factory=dict, kw_only=True)

    def write(self, content: bytes, name: str) -> str:
        """The address of `content`, whose kind the name's ending tells; "" where it is too much."""
        ending = name[name.rindex(".") :]
        if not self._fits(len(content), ending):
            self.left_out += 1
            return ""
        self.used += len(content)
        return f"data:{_TYPES[ending]};base64,{b64encode(content).decode()}"

    def clip(self, path: Path, name: str) -> Shown:
        """A clip, smaller and shorter where its file is large, with its first frame; the latter alone where it is too
        much. Empty if it is not there or cannot be decoded."""
        if not path.is_file():
            return Shown()
        small = self.ahead[path] if path in self.ahead else small_clip(path)
        if small is None:
            return Shown()
        still = self.write(small.still, f"{name}{small.ending}")
        return Shown(self.write(small.video, f"{name}.mp4"), still, small.size)

    def picture(self, path: Path, name: str) -> Shown:
        """A picture, smaller where it is large; empty if it is not there or cannot be decoded."""
        from kiwi.media import MediaError, decode_image, resize_to_budget

        if not path.is_file():
            return Shown()
        try:
            image = resize_to_budget(decode_image(path.read_bytes())[None], SMALL_PIXELS)[0]
        except MediaError:
            return Shown()
        content, ending = still_bytes(image)
        return Shown("", self.write(content, f"{name}{ending}"), (image.shape[1], image.shape[0]))

    def _fits(self, size: int, ending: str) -> bool:
        return self.used + size <= self.budget * (CLIPS if ending == ".mp4" else 1.0)
