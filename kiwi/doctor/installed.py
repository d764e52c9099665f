"""What is installed here: packages by group, programs, and room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kiwi.doctor.checks import Check, Question

GROUPS = {
    "core": ("kfp", "mlflow", "dvc", "prometheus-client", "pydantic", "rich", "typer"),
    "data": ("av", "numpy", "opencv-python-headless", "polars", "pyarrow", "jinja2", "s3fs"),
    "train": ("torch", "torchvision", "transformers", "diffusers", "peft", "safetensors"),
}
PROGRAMS = {"git": "dataset versions"}
GIGABYTE = 10**9
LEAST_GIGABYTES = 5.0


def questions(groups: tuple[str, ...], workdir: Path) -> Iterator[Question]:
    """Args: groups: the package groups that this machine needs."""
    for group in GROUPS:
        yield Question("installed", group, partial(_packages, group, group in groups))
    for program in PROGRAMS:
        yield Question("installed", program, partial(_program, program))
    yield Question("installed", "disk", partial(_disk, workdir))


def _packages(group: str, needed: bool) -> Check:
    found = {name: installed(name) for name in GROUPS[group]}
    missing = [name for name, has in found.items() if not has]
    said = ", ".join(f"{name} {has}" for name, has in found.items() if has) or "nothing"
    if not missing:
        return Check("installed", group, "ok", said, needed=needed)
    extra = "" if group == "core" else f"[{group}]"
    remedy = f"pip install 'kiwi{extra}'"
    return Check("installed", group, "missing", f"no {', '.join(missing)}; there is {said}", remedy, needed)


def installed(package: str) -> str | None:
    """The package's version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _program(name: str) -> Check:
    place = shutil.which(name)
    if place:
        return Check("installed", name, "ok", place, needed=True)
    return Check("installed", name, "missing", "not found", f"install it; needed for {PROGRAMS[name]}", needed=True)


def _disk(workdir: Path) -> Check:
    there = next(folder for folder in (workdir.absolute(), *workdir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free / GIGABYTE
    said = f"{free:.1f} GB free in {there}"
    if free >= LEAST_GIGABYTES:
        return Check("installed", "disk", "ok", said, needed=True)
    return Check("installed", "disk", "failed", f"{said}, less than {LEAST_GIGABYTES:g}", "make room", needed=True)
