"""The container image that components run in: one reference, fixed when a pipeline is compiled."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from kiwi import __version__
from kiwi.errors import KiwiError, UsageError

PINNED = re.compile(r"(@sha256:[0-9a-f]{64}|:[0-9a-f]{7,40})$")

# kfp.local's subprocess runner ignores the image but warns unless its name says "python".
SUBPROCESS = f"kiwi-python-subprocess:{__version__}"

ROOT = Path(__file__).resolve().parents[1]
# What images are made of, and nothing else: the same sources give the same tag.
SOURCES = ("kiwi", "components", "pipelines", "infra/profiles", "infra/schedules.yaml", "infra/images")
SOURCES += ("pyproject.toml", "README.md", "LICENSE")


def image_reference() -> str:
    """The reference in KIWI_IMAGE, or the subprocess runner's placeholder, which no registry holds.

    Raises:
        UsageError: for a tag that can move (`latest`, `v1`) and that the engine here knows no digest of: KFP's cache
            key is the image's name, so a tag that moves gives stale results.
    """
    image = os.environ.get("KIWI_IMAGE", "")
    if not image:
        return SUBPROCESS
    return image if PINNED.search(image) else digest_of(image)


def digest_of(image: str) -> str:
    """REPOSITORY@sha256:… that a moving tag means now, as the engine on this machine got it from a registry or sent it
    there. Raises UsageError where there is no engine, no such image, or one that no registry has seen."""
    repository = re.sub(r":[^/:]*$", "", image)
    digests = [name for name in _repository_digests(image) if name.startswith(f"{repository}@sha256:")]
    if not digests:
        raise UsageError(
            f"image {image!r} can move: its tag is neither a digest nor a git SHA",
            "name it as REPOSITORY@sha256:<digest> or REPOSITORY:<git SHA> (`make images` prints them)",
        )
    return digests[0]


def _repository_digests(image: str) -> list[str]:
    if shutil.which("docker") is None:
        return []
    command = ["docker", "image", "inspect", "--format", "{{json .RepoDigests}}", image]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return list(json.loads(asked.stdout) or []) if asked.returncode == 0 else []


def source_files(root: Path = ROOT) -> list[str]:
    """The files that images are made of, sorted: what git tracks or would track of SOURCES.

    Raises KiwiError outside a git checkout.
    """
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES)
    return sorted({name for name in listed.split("\0") if name and (root / name).is_file()})


def source_tag(root: Path = ROOT) -> str:
    """The tag of images made of this checkout: the commit's SHA; a hash of the sources where they differ from it."""
    if not _git(root, "status", "--porcelain", "--", *SOURCES).strip():
        return _git(root, "rev-parse", "HEAD").strip()
    told = hashlib.sha256()
    for name in source_files(root):
        told.update(f"{name}\0{hashlib.sha256((root / name).read_bytes()).hexdigest()}\n".encode())
    return told.hexdigest()[:40]


def _git(root: Path, *arguments: str) -> str:
    remedy = "set KIWI_IMAGE=REPOSITORY@sha256:<digest> or REPOSITORY:<git SHA>"
    if shutil.which("git") is None:
        raise KiwiError("git is not installed, so the image of this checkout has no name", remedy)
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KiwiError(f"{root} is no git checkout, so its image has no name", remedy)
    return done.stdout


IMAGE = image_reference()
