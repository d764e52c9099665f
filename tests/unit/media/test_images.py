"""Still images in and out."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from kiwi.media import Limits, MediaError, decode_image, fit_on_white, png_bytes, resize_frames, resize_to_budget


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_keeps_every_pixel_and_its_bytes_are_stable() -> None:
    image = picture()
    assert np.array_equal(decode_image(png_bytes(image)), image)
    assert png_bytes(image) == png_bytes(image.copy())


def test_masks_are_written_too() -> None:
    mask = (picture()[..., 0] > 127).astype(np.uint8) * 255
    assert np.array_equal(decode_image(png_bytes(mask))[..., 0], mask)


def test_the_orientation_of_a_photo_is_applied() -> None:
    image = PIL.Image.fromarray(picture(20, 30))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    assert decode_image(saved(image, "JPEG", exif=exif)).shape == (30, 20, 3)


def test_transparency_becomes_white() -> None:
    layers = np.zeros((8, 8, 4), np.uint8)
    layers[:4] = (10, 20, 30, 255)
    found = decode_image(saved(PIL.Image.fromarray(layers), "PNG"))
    assert (found[:4] == (10, 20, 30)).all()
    assert (found[4:] == 255).all()


def test_grey_palette_and_sixteen_bits_become_rgb() -> None:
    grey = PIL.Image.fromarray(picture()[..., 0])
    assert np.array_equal(decode_image(saved(grey, "PNG")), np.repeat(picture()[..., :1], 3, axis=2))
    assert decode_image(saved(PIL.Image.fromarray(picture()).quantize(16), "PNG")).shape == (20, 30, 3)
    deep = PIL.Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    assert np.abs(decode_image(saved(deep, "PNG")).astype(int) - picture()[..., :1]).max() <= 1


def test_a_truncated_image_is_unreadable_never_half_grey() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        data = saved(PIL.Image.fromarray(picture(200, 300)), kind)
        with pytest.raises(MediaError) as caught:
            decode_image(data[: len(data) // 2])
        assert caught.value.reason == "unreadable", kind


def test_an_image_bomb_is_refused_by_its_header() -> None:
    small = saved(PIL.Image.new("L", (8, 8)), "PNG")
    header = b"IHDR" + struct.pack(">II", 40_000, 40_000) + small[24:29]
    bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with pytest.raises(MediaError) as caught:
        decode_image(bomb)
    assert caught.value.reason == "over_limits"
    with pytest.raises(MediaError):
        decode_image(png_bytes(picture()), limits=Limits(max_pixels=100))


def test_nothing_is_empty_and_text_is_unreadable() -> None:
    for data, reason in (
        (b"", "empty"),
        (b"no image at all", "unreadable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unreadable"),
    ):
        with pytest.raises(MediaError) as caught:
            decode_image(data)
        assert caught.value.reason == reason


def test_an_image_is_fitted_on_white_in_its_own_aspect() -> None:
    fitted = fit_on_white(np.zeros((10, 40, 3), np.uint8), 64, 64)
    dark = np.argwhere(fitted[..., 0] == 0)
    assert (dark.min(axis=0) == (24, 0)).all()
    assert (dark.max(axis=0) == (39, 63)).all()
    assert (fitted[:24] == 255).all()
    assert (fitted[40:] == 255).all()


def test_resizing_keeps_a_flat_picture_flat_and_a_budget() -> None:
    flat = np.full((2, 33, 47, 3), 90, np.uint8)
    assert (resize_frames(flat, 16, 20) == 90).all()
    assert (resize_frames(flat, 66, 94) == 90).all()
    assert resize_to_budget(flat, 10**6) is flat
    height, width = resize_to_budget(flat, 500).shape[1:3]
    assert height * width <= 500
    assert abs(height / width - 33 / 47) < 0.08
