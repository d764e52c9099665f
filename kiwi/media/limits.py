"""What a media file may cost us before it is refused, and the one error that says why it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kiwi.errors import KiwiError

MediaReason = Literal["unreadable", "over_limits", "no_video", "empty"]


class MediaError(KiwiError):
    """A file that is no usable clip. `reason` is one of unreadable, over_limits, no_video, empty."""

    def __init__(self, reason: MediaReason, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.reason: MediaReason = reason


@dataclass(frozen=True)
class Limits:
    """Upper bounds on one file. Whatever passes them is refused as over_limits, before the memory is spent.

    Attributes:
        max_pixels: pixels a frame, as stored; the default admits DCI 4K and refuses 8K.
        max_side: pixels along either side.
        max_duration: seconds of playing time that the file declares.
        max_bytes: size of the file.
        max_decode_seconds: wall-clock time spent on decoding one clip.
        max_decoded_bytes: RGB bytes of the decoded frames after resizing.
    """

    max_pixels: int = 4096 * 2304
    max_side: int = 8192
    max_duration: float = 600.0
    max_bytes: int = 2 * 1024**3
    max_decode_seconds: float = 120.0
    max_decoded_bytes: int = 3 * 1024**3

    def check_size(self, name: str, width: int, height: int) -> None:
        """Raises MediaError(over_limits) if a frame of `width` by `height` pixels is too large."""
        if width <= 0 or height <= 0:
            raise MediaError("unreadable", f"{name}: declares no frame size, or none that a decoder accepts")
        if width * height > self.max_pixels or max(width, height) > self.max_side:
            raise MediaError(
                "over_limits",
                f"{name}: {width}x{height} pixels a frame, more than {self.max_pixels} or a side over {self.max_side}",
                "scale the file down",
            )

    def check_bytes(self, name: str, size: int) -> None:
        """Raises MediaError(empty) for no bytes at all, MediaError(over_limits) for too many."""
        if size == 0:
            raise MediaError("empty", f"{name}: the file is empty")
        if size > self.max_bytes:
            raise MediaError("over_limits", f"{name}: {size} bytes, more than {self.max_bytes}", "cut or recompress it")

    def check_duration(self, name: str, seconds: float) -> None:
        """Raises MediaError(over_limits) if the file says that it plays longer than `max_duration`."""
        if seconds > self.max_duration:
            raise MediaError(
                "over_limits", f"{name}: {seconds:.0f} s long, more than {self.max_duration:.0f} s", "cut it to a clip"
            )


DEFAULT_LIMITS = Limits()
