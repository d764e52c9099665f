"""Puts what a page shows into the page itself, as data addresses, within a bound on its size."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

BUDGET = 12_000_000  # bytes of media, before base64 adds a third
CLIPS = 0.8  # the share of it that clips may take, so that stills of every sample still fit
_TYPES = {".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg"}


@dataclass
class EmbeddedMedia:
    """Media by their addresses in the page. What does not fit any more is left out and counted."""

    budget: int = BUDGET
    used: int = 0
    left_out: int = 0

    def write(self, content: bytes, name: str) -> str:
        """The address of `content`, whose kind the name's ending tells; "" where it is too much."""
        ending = name[name.rindex(".") :]
        share = CLIPS if ending == ".mp4" else 1.0
        if self.used + len(content) > self.budget * share:
            self.left_out += 1
            return ""
        self.used += len(content)
        return f"data:{_TYPES[ending]};base64,{b64encode(content).decode()}"
