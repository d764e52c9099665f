"""What images are made of and how they are named: pinned packages with hashes, and tags that cannot move."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from components.image import PINNED, digest_of, source_files, source_tag
from kiwi.errors import KiwiError, UsageError

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = REPOSITORY / "infra" / "images"
PIN = re.compile(r"([a-z0-9][a-z0-9._-]*)==(\S+) --hash=sha256:[0-9a-f]{64}")
FILES = ("tools.txt", "torch.txt", "client.txt", "compute.txt")


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (IMAGES / file).read_text().splitlines() if not line.startswith("#")]
    found = [PIN.fullmatch(line) for line in lines]
    assert all(found), f"{file}: {lines[found.index(None)]} is no pin with a hash"
    return {_name(match[1]): match[2] for match in found}


def locked() -> dict[str, str]:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    named = [line.partition(";")[0].strip().partition("==") for line in lines if "==" in line and line[0] != "#"]
    return {_name(name): version for name, _, version in named}


def _name(said: str) -> str:
    return re.sub(r"[-_.]+", "-", said).lower()


@pytest.mark.parametrize("file", FILES)
def test_every_package_of_an_image_has_a_hash_and_the_version_of_the_lock(file):
    versions = locked()
    differing = {name: version for name, version in pins(file).items() if versions.get(name, version) != version}
    assert not differing, "make images-lock"


def test_images_hold_what_the_project_asks_for_and_nothing_for_developers():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(wanted: list[str]) -> set[str]:
        return {_name(re.match(r"[\w.-]+", said)[0]) for said in wanted} - {"kiwi"}

    core, everything = names(project["dependencies"]), names([*extras["data"], *extras["train"], *extras["postgres"]])
    assert core <= set(pins("client.txt")), "make images-lock"
    assert core | everything <= set(pins("compute.txt")), "make images-lock"
    assert "torch" not in pins("client.txt")
    assert not {"pytest", "mypy", "ruff"} & set(pins("compute.txt"))


def test_the_compute_image_changes_no_package_of_the_client():
    compute = pins("compute.txt")
    assert {name: compute.get(name) for name in pins("client.txt")} == pins("client.txt")


def test_the_layer_of_torch_holds_its_packages_of_the_compute_image_and_no_other():
    torch, compute = pins("torch.txt"), pins("compute.txt")
    large = {name for name in compute if re.match(r"(torch|torchvision|triton|nvidia-.+|cuda-.+)$", name)}
    assert {"torch", "torchvision"} < set(torch)
    assert torch == {name: compute[name] for name in large}, "make images-lock"


@pytest.mark.parametrize("file", ["Dockerfile", *FILES])
def test_no_address_and_no_login_is_written_down(file):
    text = (IMAGES / file).read_text()
    assert not re.search(r"https?://|--index|--extra-index|--trusted-host|@[a-z]", text)
    assert not re.search(r"(?i)password|secret=|token=", text)


def test_images_run_as_a_numbered_user_on_a_base_that_is_an_argument():
    text = (IMAGES / "Dockerfile").read_text()
    targets = dict(re.findall(r"^FROM (\S+) AS (client|cpu|gpu)$", text, re.M))
    assert set(targets.values()) == {"client", "cpu", "gpu"}
    assert re.search(r"^ARG BASE=python:[\d.]+-slim\S*$", text, re.M)
    stages = re.split(r"^FROM ", text, flags=re.M)
    for stage in stages:
        if re.match(r"\S+ AS (client|cpu)\n", stage):
            assert "\nUSER 1000:1000\n" in stage
            assert "\nUSER" not in stage.partition("\nUSER 1000:1000\n")[2]


def test_each_stage_that_downloads_names_the_index_for_itself():
    """An engine without BuildKit forgets arguments from one stage to the next."""
    text = (IMAGES / "Dockerfile").read_text()
    downloads = [stage for stage in re.split(r"^FROM ", text, flags=re.M) if re.search(r"-r /opt/requirements", stage)]
    assert len(downloads) == len(FILES)
    for stage in downloads:
        named = stage.partition("-m pip install")[0]
        assert "\nARG PIP_INDEX_URL\nARG PIP_EXTRA_INDEX_URL\n" in named


def test_what_changes_with_every_commit_stands_below_what_is_large():
    text = (IMAGES / "Dockerfile").read_text()
    places = [text.index(f"AS {stage}\n") for stage in ("client", "torch-packages", "compute-packages", "cpu")]
    assert places == sorted(places), "an engine without BuildKit builds all that stands above a target"
    for stage in re.split(r"^FROM ", text, flags=re.M):
        if "ARG REVISION" in stage:
            assert stage.index("COPY . /app") < stage.index("ARG REVISION"), "a commit of a page alone changes no layer"


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with sources of images and with something else."""
    for name in ("kiwi/one.py", "infra/images/Dockerfile", "docs/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_clean_checkout_is_named_by_its_commit(checkout):
    assert source_tag(checkout) == git(checkout, "rev-parse", "HEAD")
    (checkout / "docs" / "page.md").write_text("second\n")
    assert source_tag(checkout) == git(checkout, "rev-parse", "HEAD"), "a page is no part of an image"


def test_sources_that_differ_from_the_commit_have_a_name_of_their_own(checkout):
    commit = source_tag(checkout)
    (checkout / "kiwi" / "one.py").write_text("second\n")
    changed = source_tag(checkout)
    (checkout / "kiwi" / "two.py").write_text("new\n")
    added = source_tag(checkout)
    assert len({commit, changed, added}) == 3
    assert all(PINNED.search(f"kiwi-cpu:{tag}") for tag in (commit, changed, added))
    (checkout / "kiwi" / "two.py").unlink()
    assert source_tag(checkout) == changed, "the same sources have the same name"


def test_images_see_no_file_that_git_ignores(checkout):
    (checkout / ".gitignore").write_text("*.secret\n")
    (checkout / "kiwi" / "login.secret").write_text("hidden\n")
    assert source_files(checkout) == ["infra/images/Dockerfile", "kiwi/one.py"]


def test_a_folder_that_is_no_checkout_is_told(tmp_path):
    with pytest.raises(KiwiError, match="no git checkout"):
        source_tag(tmp_path)


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """A FAKE docker program, which knows the digests that a test gives it: engines here have no registry."""

    def knows(*digests: str) -> None:
        program = tmp_path / "bin" / "docker"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho '{json.dumps(digests)}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return knows


def test_a_moving_tag_becomes_the_digest_that_it_means_now(engine):
    digest = "sha256:" + "a" * 64
    engine(f"other.example/kiwi-gpu@sha256:{'b' * 64}", f"registry.example:5000/kiwi-gpu@{digest}")
    assert digest_of("registry.example:5000/kiwi-gpu:latest") == f"registry.example:5000/kiwi-gpu@{digest}"
    assert digest_of("registry.example:5000/kiwi-gpu") == f"registry.example:5000/kiwi-gpu@{digest}"


def test_a_moving_tag_without_a_digest_is_refused(engine):
    engine()
    with pytest.raises(UsageError, match="can move"):
        digest_of("kiwi-gpu:latest")
