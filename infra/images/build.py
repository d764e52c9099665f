"""Builds the images, names them by git SHA, looks at each with `kiwi doctor`, and prints their digests.

    python infra/images/build.py [--target TARGET]... [--repository PREFIX] [--base IMAGE] [--push] [--out FILE]

The tag is the commit's SHA, or a hash of the sources where they differ from the commit: neither can move. The build
sees those sources and nothing else of the checkout. pip's index is the builder's: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from components.image import ROOT, source_files, source_tag

TARGETS = ("client", "cpu", "gpu")
DOCKERFILE = "infra/images/Dockerfile"
INDEX = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
# As a pod of ours runs: nothing writable but /tmp, no capability, no new privilege, no network.
LOCKED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
LOCKED += ["--network", "none"]


def context() -> bytes:
    """The build's context as a tar: the sources, with one owner, mode and time, so that layers are found again."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in source_files():
            content = (ROOT / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 0
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def index_arguments() -> list[str]:
    """The builder's index as build arguments. A login in an address would stay in the image's history: refused."""
    said = []
    for name in INDEX:
        value = os.environ.get(name, "")
        if any(urlsplit(address).password or urlsplit(address).username for address in value.split()):
            sys.exit(f"images: {name} holds a login, which would stay in the image: let the network's proxy log in")
        said += ["--build-arg", f"{name}={value}"] if value else []
    return said


def build(target: str, reference: str, tag: str, base: str | None, sources: bytes) -> None:
    command = ["docker", "build", "--network", "host", "--file", DOCKERFILE, "--target", target, "--tag", reference]
    command += ["--build-arg", f"REVISION={tag}", *(["--build-arg", f"BASE={base}"] if base else [])]
    done = subprocess.run([*command, *index_arguments(), "-"], input=sources, stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(f"images: {target} was not built ({done.returncode})")


def check(reference: str) -> None:
    """`kiwi doctor` in a container that may write to /tmp alone; KIWI_IMAGE_TARGET says what must be there."""
    command = ["docker", "run", "--rm", *LOCKED, reference, "kiwi", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    try:
        checks = json.loads(done.stdout)["checks"]
    except (ValueError, KeyError):
        sys.exit(f"images: kiwi doctor does not run in {reference}: {(done.stderr or done.stdout).strip()[-500:]}")
    bad = [it for it in checks if it["state"] == "failed" or (it["needed"] and it["state"] != "ok")]
    faults = [f"{it['name']}: {it['said']}" for it in bad]
    sys.exit(f"images: {reference} is not well: {'; '.join(faults)}")


def described(reference: str) -> dict:
    """{"image", "digest", "bytes"}: the registry's digest once it was pushed, else the engine's own."""
    form = "{{json .RepoDigests}} {{.Id}} {{.Size}}"
    asked = subprocess.run(
        ["docker", "image", "inspect", "--format", form, reference], capture_output=True, text=True, check=True
    )
    digests, own, size = asked.stdout.rsplit(maxsplit=2)
    repository = reference.rpartition(":")[0]
    pushed = [name for name in json.loads(digests) or [] if name.startswith(f"{repository}@")]
    return {"image": reference, "digest": pushed[0] if pushed else own, "bytes": int(size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--repository", default="kiwi", help="PREFIX: images are PREFIX-client:TAG and so on")
    parser.add_argument("--base", help="the Python image to build on; default: the Dockerfile's")
    parser.add_argument("--push", action="store_true", help="send them to the registry that PREFIX names")
    parser.add_argument("--out", type=Path, help="also write what is printed as JSON")
    arguments = parser.parse_args()
    if shutil.which("docker") is None:
        sys.exit("images: no docker here: install Docker's engine")
    tag, sources, made = source_tag(), context(), []
    for target in arguments.target or TARGETS:
        reference, started = f"{arguments.repository}-{target}:{tag}", time.monotonic()
        build(target, reference, tag, arguments.base, sources)
        check(reference)
        if arguments.push:
            subprocess.run(["docker", "push", "--quiet", reference], stdout=sys.stderr, check=True)
        made.append({"target": target, **described(reference), "seconds": round(time.monotonic() - started, 1)})
    for image in made:
        print(f"{image['target']:<7} {image['image']}\n        {image['digest']}  {image['bytes'] / 1e6:.0f} MB")
    if arguments.out:
        arguments.out.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
