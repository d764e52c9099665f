"""Still images in and out: header first, so that an image bomb is refused before it is unpacked."""

from __future__ import annotations

import io

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from kiwi.media.limits import DEFAULT_LIMITS, Limits, MediaError
from kiwi.media.resizing import Image

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


def is_still_image(head: bytes) -> bool:
    """Whether a file that begins with `head` (16 bytes or more) is a PNG, JPEG, WebP, BMP or TIFF image."""
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*")):
        return True
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def image_size(data: bytes, *, limits: Limits = DEFAULT_LIMITS, name: str = "image") -> tuple[int, int, str]:
    """(height, width, format) from the header alone, orientation applied. Raises MediaError as `decode_image` does."""
    with _open(data, limits, name) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
            width, height = height, width
        return height, width, (image.format or "").lower()


def decode_image(data: bytes, *, limits: Limits = DEFAULT_LIMITS, name: str = "image") -> Image:
    """Decodes a still image to RGB uint8 [H,W,3].

    The EXIF orientation is applied; transparency is laid on white; 16 bits become 8.

    Raises:
        MediaError: empty, unreadable (also when truncated), or over_limits.
    """
    with _open(data, limits, name) as image:
        try:
            image.load()
            return rgb_of(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise MediaError("unreadable", f"{name}: image cannot be decoded ({error})", "export it again") from error


def rgb_of(image: PIL.Image.Image) -> Image:
    """An opened image of any mode as RGB uint8 [H,W,3], upright, on white, of 8 bits: what `decode_image` gives."""
    upright = PIL.ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
        values = np.asarray(upright, dtype=np.float32)
        deep = upright.mode.startswith("I") and (upright.mode != "I" or values.max(initial=0) > 255)
        grey = np.clip(values / (257.0 if deep else 1.0), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in upright.getbands() or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        white = PIL.Image.new("RGBA", upright.size, (255, 255, 255, 255))
        upright = PIL.Image.alpha_composite(white, upright)
    return np.asarray(upright.convert("RGB"), dtype=np.uint8)


def png_bytes(image: NDArray[np.uint8], *, compression: int = 3) -> bytes:
    """PNG of an RGB image uint8 [H,W,3] or a mask uint8 [H,W]; the same pixels give the same bytes."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    done, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, compression])
    if not done:
        raise MediaError("unreadable", f"an image of shape {image.shape} and type {image.dtype} does not encode as PNG")
    return data.tobytes()


def _open(data: bytes, limits: Limits, name: str) -> PIL.Image.Image:
    limits.check_bytes(name, len(data))
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise MediaError("over_limits", f"{name}: {error}", "scale the image down") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError("unreadable", f"{name}: no readable image", "give PNG, JPEG, WebP, BMP or TIFF") from error
    limits.check_size(name, *image.size)
    return image
