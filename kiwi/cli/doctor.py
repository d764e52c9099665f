"""`kiwi doctor`: what is installed and what is missing, for which commands."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

GROUPS = {
    "core": ("kfp", "mlflow", "dvc", "pydantic", "rich", "typer"),
    "data": ("av", "numpy", "opencv-python-headless", "polars", "pyarrow", "jinja2"),
    "train": ("torch", "torchvision", "transformers", "diffusers", "peft", "safetensors"),
}
PROGRAMS = {"git": "dataset versions"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """Lists what kiwi needs, what is there, and what to do about the rest. Exit code 1 where something is missing."""
    found = {group: {name: _version(name) for name in names} for group, names in GROUPS.items()}
    programs = {name: shutil.which(name) for name in PROGRAMS}
    healthy = all(all(group.values()) for group in found.values()) and all(programs.values())
    if as_json:
        print(json.dumps({"python": platform.python_version(), "packages": found, "programs": programs, "ok": healthy}))
    else:
        print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
        for group, packages in found.items():
            missing = [name for name, has in packages.items() if not has]
            said = ", ".join(f"{name} {has}" for name, has in packages.items() if has)
            print(f"{'ok     ' if not missing else 'MISSING'} {group}: {said or 'nothing'}")
            if missing:
                extra = "" if group == "core" else f"[{group}]"
                print(f"        missing {', '.join(missing)}: pip install 'kiwi{extra}'")
        for name, place in programs.items():
            print(f"{'ok     ' if place else 'MISSING'} {name}: {place or f'install it; needed for {PROGRAMS[name]}'}")
    sys.exit(0 if healthy else 1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
