"""Writes the end-to-end pipeline as KFP YAML, for one profile and one image."""

import os
from pathlib import Path


def compile_end_to_end(out: Path, profile: str, image: str | None = None) -> None:
    """Compiles for `profile`; `image` (else the profile's own) becomes the image of every task.

    To be called once in a process: the components read profile and image when they are imported.

    Raises:
        UsageError: the profile is unknown or faulty, or the image is missing or named by a tag that can move.
    """
    if image:
        os.environ["KIWI_IMAGE"] = image
    os.environ["KIWI_PROFILE"] = profile

    from pipelines.profile import read_profile

    chosen = read_profile(profile)
    if chosen.image and not image:
        os.environ["KIWI_IMAGE"] = chosen.image

    from kfp import compiler

    from pipelines.end_to_end import end_to_end

    out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(end_to_end, str(out))
