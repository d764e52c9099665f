"""`kiwi run --backend docker` on a real engine: the same results as in subprocesses, and what happens to containers.

Needs Docker's engine and the image of this checkout (`make images`, or KIWI_IMAGE). Tests of the orchestration alone
put FAKE doors (tests/fixtures/fake_doors) into that image, so that a whole run takes seconds and a task can misbehave.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FAKES = REPOSITORY / "tests" / "fixtures" / "fake_doors"
LABEL = "dev.kiwi.workspace"
SMALL = ["source.clips=40", "source.images=40", "benchmark.samples_per_kind=2", "benchmark.sampling_steps=2"]
SMALL += [f"stages.stage{number}.steps=2" for number in (1, 2, 3)]


@pytest.fixture(scope="session")
def image() -> str:
    if shutil.which("docker") is None:
        pytest.skip("no docker here")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.skip("no Docker engine answers here")
    from components.image import source_tag

    name = os.environ.get("KIWI_IMAGE") or f"kiwi-cpu:{source_tag()}"
    if subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode:
        pytest.skip(f"the engine has no image of this checkout ({name}): make images")
    return name


@pytest.fixture(scope="session")
def fake_image(image: str) -> Iterator[str]:
    """The image with FAKE doors in place of everything that computes."""
    files = {file.name: file.read_bytes() for file in sorted(FAKES.iterdir()) if file.is_file()}
    files["Dockerfile"] = f"FROM {image}\nCOPY *.py /fakes/\nENV PYTHONPATH=/fakes\n".encode()
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    name = f"kiwi-fake:{sha256(context.getvalue()).hexdigest()[:40]}"
    subprocess.run(["docker", "build", "--quiet", "--tag", name, "-"], input=context.getvalue(), check=True)
    yield name
    subprocess.run(["docker", "image", "rm", name], capture_output=True, check=False)


def command(workdir: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "kiwi", "run", "--workdir", str(workdir), *more]


def environment(image: str, fake: str = "") -> dict[str, str]:
    """The fakes stand in on this side too, for what the runner itself sends."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KIWI_", "MLFLOW_"))}
    paths = f"{FAKES}{os.pathsep}{REPOSITORY}"
    return {**kept, "PYTHONPATH": paths, "KIWI_IMAGE": image, "KIWI_FAKE": fake, "COLUMNS": "200"}


def fake_run(workdir: Path, image: str, fake: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(workdir, "--backend", "docker"),
        env=environment(image, fake), capture_output=True, text=True, cwd=workdir.parent, check=False,
    )  # fmt: skip


def calls(workdir: Path) -> list[str]:
    file = workdir / "fake-calls.txt"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def containers(workdir: Path) -> list[str]:
    asked = ["docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}={workdir}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()


def until(condition, what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@contextlib.contextmanager
def started(workdir: Path, image: str, fake: str) -> Iterator[subprocess.Popen[str]]:
    """A run that has come to the task that `fake` lets sleep."""
    process = subprocess.Popen(
        command(workdir, "--backend", "docker"),
        env=environment(image, fake), stderr=subprocess.PIPE, text=True, cwd=workdir.parent,
    )  # fmt: skip
    try:
        until(lambda: fake.partition(":")[2] in calls(workdir), "the run never got to work")
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def finished(fake_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "demo"
    done = fake_run(workdir, fake_image)
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_run_in_containers_does_every_task_in_order_and_leaves_its_summary(finished):
    order = [name for name in dict.fromkeys(calls(finished)) if not name.startswith("send")]
    assert " ".join(order) == (
        "plan_shards ingest score ground segment unique_crops synthesize verify deduplicate publish_dataset "
        "cache_latents train_stage1 train_stage2 train_stage3 run_benchmark judge register_model report decide promote"
    )
    assert json.loads((finished / "summary.json").read_text())["run"]["backend"] == "docker"
    assert not (finished / "tmp").exists(), "no scratch is left"


def test_results_belong_to_the_caller_and_no_container_stays(finished):
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in [finished, *finished.rglob("*")]}
    assert owners == {(os.getuid(), os.getgid())}
    assert containers(finished) == []


def test_shards_share_the_threads_that_other_tasks_have_alone(finished):
    threads = dict(line.split() for line in (finished / "fake-calls.txt").read_text().splitlines())
    assert (threads["score"], threads["train_stage1"]) == ("1", "2")


def test_a_task_that_kills_itself_is_a_failure(fake_image, tmp_path):
    failed = fake_run(tmp_path / "demo", fake_image, "killed:plan_shards")
    assert failed.returncode == 1
    assert "plan_shards failed: its container was killed" in failed.stderr
    assert "ingest" not in calls(tmp_path / "demo")
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("how", [["kill"], ["rm", "--force"]], ids=["killed", "removed"])
def test_a_container_that_the_engine_ends_is_a_failure(fake_image, tmp_path, how):
    workdir = tmp_path / "demo"
    with started(workdir, fake_image, "sleep:plan_shards") as process:
        for attempt in (1, 2):  # the task is tried again once
            until(lambda attempt=attempt: calls(workdir).count("plan_shards") == attempt, "it was not tried again")
            subprocess.run(["docker", *how, *containers(workdir)], check=True, capture_output=True)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 1, said
    assert "plan_shards failed: its container was" in said
    assert "ingest" not in calls(workdir)
    assert not (workdir / "summary.json").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_container_and_the_next_one_resumes(fake_image, tmp_path, signum):
    workdir = tmp_path / "demo"
    with started(workdir, fake_image, "sleep:ingest") as process:
        assert containers(workdir), "the run has a container while it works"
        process.send_signal(signum)
        process.wait(timeout=60)
    until(lambda: not containers(workdir), "a container is left", seconds=30)
    again = fake_run(workdir, fake_image)
    assert again.returncode == 0, again.stderr
    assert "Resuming the unfinished run" in again.stderr


def test_a_container_cannot_write_to_its_root_and_has_no_capabilities(fake_image, tmp_path):
    workdir = tmp_path / "demo"
    with started(workdir, fake_image, "sleep:plan_shards"):
        asked = subprocess.run(
            ["docker", "inspect", *containers(workdir)], capture_output=True, text=True, check=True
        ).stdout
    (seen,) = json.loads(asked)
    assert seen["HostConfig"]["ReadonlyRootfs"]
    assert seen["HostConfig"]["CapDrop"] == ["ALL"]
    assert seen["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
    assert seen["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"


def test_an_image_that_is_not_there_is_refused_before_anything_starts(image, tmp_path):
    absent = f"kiwi-absent:{'0' * 40}"
    refused = fake_run(tmp_path / "demo", absent)
    assert refused.returncode == 2
    assert absent in refused.stderr
    assert not (tmp_path / "demo" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_containers_and_subprocesses_give_the_same_dataset_losses_and_scores(image, tmp_path):
    summaries = {}
    for backend in ("local", "docker"):
        workdir = tmp_path / backend / "demo"
        workdir.parent.mkdir()
        options = [part for override in SMALL for part in ("--set", override)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("KIWI_", "MLFLOW_"))}
        subprocess.run(
            command(workdir, "--backend", backend, *options),
            env={**kept, "KIWI_IMAGE": image}, check=True, cwd=workdir.parent,
        )  # fmt: skip
        said = json.loads((workdir / "summary.json").read_text())
        summaries[backend] = {
            "digest": json.loads((workdir / "dataset.json").read_text())["digest"],
            "losses": [(stage["loss_first"], stage["loss_last"]) for stage in said["stages"]],
            "benchmark": said["benchmark"]["criteria"],
        }
    assert summaries["docker"] == summaries["local"]
