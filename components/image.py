"""The container image that components run in: one reference, fixed when a pipeline is compiled."""

import os
import re

from kiwi import __version__
from kiwi.errors import UsageError

PINNED = re.compile(r"(@sha256:[0-9a-f]{64}|:[0-9a-f]{7,40})$")

# kfp.local's subprocess runner ignores the image but warns unless its name says "python".
SUBPROCESS = f"kiwi-python-subprocess:{__version__}"


def image_reference() -> str:
    """The reference in KIWI_IMAGE, or the subprocess runner's placeholder, which no registry holds.

    Raises:
        UsageError: for a tag that can move (`latest`, `v1`): KFP's cache key is the image's name, so a tag that
            moves gives stale results.
    """
    image = os.environ.get("KIWI_IMAGE", "")
    if not image:
        return SUBPROCESS
    if not PINNED.search(image):
        raise UsageError(
            f"image {image!r} can move: its tag is neither a digest nor a git SHA",
            "name it as REPOSITORY@sha256:<digest> or REPOSITORY:<git SHA>",
        )
    return image


IMAGE = image_reference()
