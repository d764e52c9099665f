"""Prints requirements.lock: exact pins of this environment, without addresses, paths or the project itself."""

import re
import subprocess
import sys

LINUX_ONLY = re.compile(r"(nvidia-|cuda-|triton(?![a-z]))")
MARKER = '; platform_system == "Linux" and platform_machine == "x86_64"'
HEAD = """\
# Exact pins for `make run` and `make test` (Python 3.11 to 3.13). Written by `make lock`; do not edit.
# torchvision must come from the same place as torch; CUDA packages are left out where there can be no CUDA."""


def pins() -> list[str]:
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--all", "--exclude", "pip", "--exclude", "kiwi", "--exclude-editable"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    lines = []
    for line in frozen:
        if line.startswith("#"):
            continue
        name, found, version = line.partition("==")
        if not found:
            sys.exit(f"lock: {line!r} is not a plain pin; install it from a package index first")
        lines.append(f"{name}=={version}{MARKER if LINUX_ONLY.match(name.lower()) else ''}")
    return lines


if __name__ == "__main__":
    print("\n".join([HEAD, *pins()]))
