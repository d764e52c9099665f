"""Writes a pipeline as KFP YAML, for one profile, one image and one preset's stages."""

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from kiwi.errors import UsageError

PIPELINES = {
    "end_to_end": ("pipelines.end_to_end", "end_to_end"),
    "refvie": ("pipelines.parts", "refvie"),
    "curriculum": ("pipelines.parts", "curriculum"),
    "evaluation": ("pipelines.parts", "evaluation"),
    "retrain": ("pipelines.retrain", "retrain"),
}


def check_pipeline(name: str) -> str:
    """The name with underscores. Raises UsageError for one that there is not."""
    known = name.replace("-", "_")
    if known not in PIPELINES:
        raise UsageError(f"no pipeline {name!r}", f"pipelines: {', '.join(PIPELINES)}")
    return known


def compile_pipeline(
    out: Path, profile: str, image: str | None = None, pipeline: str = "end_to_end", stages: Sequence[str] = ()
) -> None:
    """Compiles for `profile`; `image` (else the profile's own) becomes the image of every task.

    To be called once in a process: the components read profile, image and stages when they are imported.

    Args:
        stages: of the preset that will run; the tiny preset's three where none are named.

    Raises:
        UsageError: the pipeline is unknown, the profile is unknown or faulty, or the image is missing or named by a
            tag that can move.
    """
    module, name = PIPELINES[check_pipeline(pipeline)]
    if image:
        os.environ["KIWI_IMAGE"] = image
    os.environ["KIWI_PROFILE"] = profile
    if stages:
        os.environ["KIWI_STAGES"] = ",".join(stages)

    from pipelines.profile import read_profile

    chosen = read_profile(profile)
    if chosen.image and not os.environ.get("KIWI_IMAGE"):
        os.environ["KIWI_IMAGE"] = chosen.image

    from kfp import compiler

    out.parent.mkdir(parents=True, exist_ok=True)
    with _stacks_without_source():
        compiler.Compiler().compile(getattr(import_module(module), name), str(out))


@contextmanager
def _stacks_without_source() -> Iterator[None]:
    """kfp asks inspect.stack() for its caller's name at every setting of a task. That reads the source of all frames,
    which was most of the time of compiling for a cluster; the name is there without."""
    whole = inspect.stack
    inspect.stack = lambda context=0: whole(context)
    try:
        yield
    finally:
        inspect.stack = whole
