"""The images as `make images` left them on this machine: who they run as, what they may write, what is well."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest

LOCKED = ["--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
LOCKED += ["--network", "none"]
SECRET = re.compile(r"(?i)password|secret|token|credential|BEGIN [A-Z ]*PRIVATE KEY|https?://[^\s/]+:[^\s/]+@")


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=["client", "cpu", "gpu"])
def image(request) -> str:
    if shutil.which("docker") is None or docker("info").returncode:
        pytest.skip("no Docker engine answers here")
    from components.image import source_tag

    tag = os.environ["KIWI_IMAGE"].rpartition(":")[2] if os.environ.get("KIWI_IMAGE") else source_tag()
    name = f"kiwi-{request.param}:{tag}"
    if docker("image", "inspect", name).returncode:
        pytest.skip(f"the engine has no image of this checkout ({name}): make images")
    return name


def run(image: str, *command: str) -> subprocess.CompletedProcess[str]:
    return docker("run", *LOCKED, image, *command)


def test_kiwi_doctor_finds_the_image_well(image):
    said = run(image, "kiwi", "doctor", "--json")
    assert said.returncode == 0, said.stdout
    assert json.loads(said.stdout)["ok"]


def test_an_image_runs_as_a_numbered_user_that_may_write_nothing_of_it(image):
    assert run(image, "id", "-u").stdout.strip() == "1000"
    assert "Read-only file system" in run(image, "touch", "/app/kiwi/new.py").stderr
    # and where the root file system is not read-only, by the files' owners
    written = docker("run", "--rm", "--network", "none", image, "sh", "-c", "touch /app/new || touch /opt/kiwi/new")
    assert written.returncode != 0


def test_an_image_is_well_as_any_numbered_user(image):
    """Clusters give a user of their own, and `kiwi run --backend docker` the caller's."""
    said = docker("run", *LOCKED, "--user", "43210:43210", image, "kiwi", "doctor", "--json")
    assert said.returncode == 0, said.stdout
    assert docker("run", *LOCKED, "--user", "43210:43210", image, "id", "-u").stdout.strip() == "43210"


def test_torch_is_where_it_belongs(image):
    there = run(image, "python3", "-c", "import torch, torchvision").returncode == 0
    assert there == (not image.startswith("kiwi-client"))


def test_no_secret_stands_in_the_settings_or_the_history_of_an_image(image):
    (seen,) = json.loads(docker("image", "inspect", image).stdout)
    said = "\n".join([*seen["Config"]["Env"], json.dumps(seen["Config"]["Labels"])])
    said += docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
    assert not SECRET.search(said)


def test_no_file_of_a_login_lies_in_an_image(image):
    names = "pip.conf .netrc .pypirc .npmrc .env id_rsa id_ed25519 credentials .git-credentials"
    wanted = [word for name in names.split() for word in ("-o", "-name", name)][1:]
    as_root = ("run", "--rm", "--user", "0:0", "--network", "none", image)  # what only root may read, too
    found = docker(*as_root, "find", "/", "-xdev", "-type", "f", "(", *wanted, ")")
    assert (found.returncode, found.stdout) == (0, "")
    keys = docker(*as_root, "grep", "-rlE", "^-----BEGIN [A-Z ]*PRIVATE KEY", "/app", "/etc", "/opt/requirements")
    assert (keys.returncode, keys.stdout) == (1, ""), "1: nothing was found"


def test_the_image_says_which_sources_it_was_made_of(image):
    (seen,) = json.loads(docker("image", "inspect", image).stdout)
    assert seen["Config"]["Labels"]["org.opencontainers.image.revision"] == image.rpartition(":")[2]
