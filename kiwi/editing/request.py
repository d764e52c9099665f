"""A file to edit, and what can be told to be wrong with it before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kiwi.editing.errors import EditError
from kiwi.editing.wording import check_instruction, check_seed
from kiwi.media.images import decode_image, is_still_image
from kiwi.media.resizing import Image
from kiwi.media.stills import STILL_SUFFIXES
from kiwi.media.streaming import Reel, survey

LARGEST_REFERENCE = 1 << 28  # bytes


@dataclass(frozen=True)
class FileRequest:
    """A file to edit.

    Attributes:
        compare: where to write source and result side by side, or None.
        seed: of the noise.
    """

    video: Path
    prompt: str
    out: Path
    reference: Path | None = None
    seed: int = 0
    compare: Path | None = None


def check_request(request: FileRequest) -> Reel:
    """Surveys the video of a request before any work. Raises EditError or MediaError, naming file and remedy."""
    check_instruction(request.prompt)
    check_seed(request.seed)
    for path in (request.video, request.reference):
        if path is not None and not path.is_file():
            raise EditError(f"no file {path}", "name an existing video or image")
    reel = survey(request.video)
    for out in (request.out, request.compare):
        if out is not None:
            _check_output(request, out, reel)
    if request.compare is not None and request.compare.absolute() == request.out.absolute():
        raise EditError(f"{request.out} cannot hold both result and comparison", "name two files", "bad_output")
    return reel


def reference_image(path: Path) -> Image:
    """A reference, RGB uint8 [H, W, 3]. Raises EditError where the file is no image, MediaError where it is damaged."""
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST_REFERENCE else b""
    except OSError as error:
        raise EditError(f"no reference {path}: {error.strerror or error}", "name an existing image") from error
    if not is_still_image(data[:32]):
        raise EditError(f"the reference {path} is no image", "give PNG, JPEG, WebP, BMP or TIFF", "no_image")
    return decode_image(data, name=str(path))


def _check_output(request: FileRequest, out: Path, reel: Reel) -> None:
    suffix = out.suffix.lower()
    if reel.is_still and suffix not in STILL_SUFFIXES:
        said = f"{out} is not a still image: {request.video} is one, and so is its edit"
        raise EditError(said, f"name a file that ends in {', '.join(STILL_SUFFIXES)}", "bad_output")
    if not reel.is_still and suffix != ".mp4":
        raise EditError(f"{out} does not end in .mp4", "name an .mp4 file", "bad_output")
    if out.is_dir():
        raise EditError(f"{out} is a folder", "name a file in it", "bad_output")
    for source in (request.video, request.reference):
        if source is not None and out.exists() and out.samefile(source):
            raise EditError(f"{out} is the input itself", "name another file", "bad_output")
