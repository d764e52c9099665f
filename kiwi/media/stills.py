"""Still images out, in the format that the name asks for, with the transparency of the image they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from kiwi.media.images import is_still_image
from kiwi.media.limits import MediaError
from kiwi.media.resizing import Image
from kiwi.media.writing import appearing_whole

STILL_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tiff": "TIFF"}
_TRANSPARENT = ("PNG", "WEBP", "TIFF")


def alpha_of(path: Path) -> NDArray[np.uint8] | None:
    """How opaque each pixel of a still image is, uint8 [H, W], upright; None where all are."""
    with path.open("rb") as file:
        if not is_still_image(file.read(32)):
            return None
    with PIL.Image.open(path) as image:
        if not image.has_transparency_data:
            return None
        upright = PIL.ImageOps.exif_transpose(image).convert("RGBA")
        alpha = np.asarray(upright)[..., 3]
    return None if alpha.min() == 255 else alpha


def write_still(path: Path, pixels: Image, alpha: NDArray[np.uint8] | None = None) -> None:
    """Writes RGB uint8 [H, W, 3] whole or not at all; JPEG and BMP hold no transparency and leave `alpha` out.

    Raises MediaError for a suffix that names no format, or a place that cannot be written.
    """
    form = STILL_SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise MediaError("unreadable", f"{path} names no image format", f"formats: {', '.join(STILL_SUFFIXES)}")
    image = PIL.Image.fromarray(pixels)
    if alpha is not None and form in _TRANSPARENT:
        image.putalpha(PIL.Image.fromarray(alpha))
    with appearing_whole(path) as temporary, temporary.open("wb") as file:
        image.save(file, form, quality=95)
