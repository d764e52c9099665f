"""Writes the images' requirement files: every package with its version and the hash of the archive that pip takes.

    python infra/images/lock.py [--python VERSION]

`requirements.lock` says the versions; pip says which archives of them the images need, for the base image's Python on
Linux x86-64. No address is written: where packages come from is the builder's own configuration.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
# What each file holds. MLflow's server, with a login, figures and artifacts on S3, runs from the client image.
SERVER = ["mlflow[auth]", "prometheus-flask-exporter"]
FILES = {
    "tools.txt": ("what installs the rest", ["pip", "setuptools"]),
    "client.txt": ("submits, tracks and promotes, without torch", [f"{ROOT}[postgres]", *SERVER]),
    "compute.txt": ("everything that a task computes with", [f"{ROOT}[all]", *SERVER]),
}
# Three quarters of the compute image, which seldom change: also in a file of their own, for a layer of their own.
LARGE = re.compile(r"(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
HEAD = """\
# {about}. Written by `make images-lock`; do not edit.
# For Python {python} on Linux x86-64: {count} packages.
"""


def resolved(wanted: list[str]) -> list[dict]:
    """pip's own report of what it would install into an empty environment, within requirements.lock."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--constraint", str(ROOT / "requirements.lock"), "--report", "-", *wanted]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"lock: pip could not resolve {' '.join(wanted)}")
    return json.loads(done.stdout)["install"]


def pin(package: dict) -> str:
    """`name==version --hash=sha256:…` of one entry of the report."""
    name, version = package["metadata"]["name"], package["metadata"]["version"]
    hashes = package["download_info"].get("archive_info", {}).get("hashes", {})
    if "sha256" not in hashes:
        sys.exit(f"lock: {name} {version} comes without a sha256")
    return f"{name.lower().replace('_', '-')}=={version} --hash=sha256:{hashes['sha256']}"


def write(file: str, about: str, python: str, pins: list[str]) -> None:
    head = HEAD.format(about=about[0].upper() + about[1:], python=python, count=len(pins))
    (FOLDER / file).write_text(head + "\n".join(pins) + "\n")
    print(f"{file}: {len(pins)} packages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.11", help="the base image's; this interpreter must be of that version")
    python = parser.parse_args().python
    if python != "{}.{}".format(*sys.version_info[:2]):
        sys.exit(f"lock: the images have Python {python}, this is {sys.version.split()[0]}")
    for file, (about, wanted) in FILES.items():
        packages = [package for package in resolved(wanted) if "dir_info" not in package["download_info"]]
        pins = sorted(pin(package) for package in packages)
        write(file, about, python, pins)
    large = [pin for pin in pins if LARGE.match(pin)]  # of compute.txt, which stands last and stays complete
    write("torch.txt", "torch and what it computes with, of compute.txt", python, large)


if __name__ == "__main__":
    main()
