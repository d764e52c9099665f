"""Video and image in and out: probe, decode, resize, encode, with limits on bad input."""

from kiwi.media.images import decode_image, image_size, is_still_image, png_bytes
from kiwi.media.limits import DEFAULT_LIMITS, Limits, MediaError
from kiwi.media.reading import Clip, Probe, decode, probe
from kiwi.media.resizing import budget_size, fit_on_white, resize_frames, resize_to_budget
from kiwi.media.writing import encode_video

__all__ = [
    "DEFAULT_LIMITS",
    "Clip",
    "Limits",
    "MediaError",
    "Probe",
    "budget_size",
    "decode",
    "decode_image",
    "encode_video",
    "fit_on_white",
    "image_size",
    "is_still_image",
    "png_bytes",
    "probe",
    "resize_frames",
    "resize_to_budget",
]
