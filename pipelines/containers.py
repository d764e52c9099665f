"""Tasks as containers on this machine: KFP's Docker runner with what it leaves out.

KFP's runner lets the engine remove a container when it ends, and takes one that is gone before it was asked about for
a success: a task that the engine killed would pass. So containers are started here, asked for their exit code, and
removed afterwards. They see the work folder and what the configuration names, as the caller's own user, with a root
file system that they cannot write to and no capabilities.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError, UsageError
from kiwi.workspace import Workspace

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

WORKSPACE_LABEL = "dev.kiwi.workspace"
RUN_LABEL = "dev.kiwi.run"
NETWORK = "KIWI_DOCKER_NETWORK"
GPUS = "KIWI_DOCKER_GPUS"
SHARED_MEMORY = "2g"  # the engine's 64 MB are too few for a loader's worker processes
KILLED = 137  # 128 + SIGKILL: also what a container that somebody removed ends with
PASSED = re.compile(
    r"(KIWI|MLFLOW|AWS|HF|HUGGING_FACE|DVC|S3|POLARS|OPENCV)_\w+|\w+_NUM_THREADS|(https?|no)_proxy", re.I
)
NOT_PASSED = ("KIWI_IMAGE", "KIWI_IMAGE_TARGET", "KIWI_PROFILE", NETWORK, GPUS)
WRITTEN = ("KIWI_HISTORY", "KIWI_ARTIFACT_ROOT", "HF_HOME", "HF_HUB_CACHE")


class EngineError(KiwiError):
    """Docker's engine is not there, does not answer, or refuses."""


@contextlib.contextmanager
def engine(
    remedy: str = "is its engine running, and may you use it? try: docker info",
) -> Iterator[docker.DockerClient]:
    """A client of the engine. Raises EngineError, also for what goes wrong in the block."""
    import docker
    from docker.errors import DockerException
    from requests import RequestException

    try:
        client = docker.from_env(version="auto")
        try:
            yield client
        finally:
            client.close()
    except (DockerException, RequestException) as error:
        raise EngineError(f"Docker: {' '.join(str(error).split())[:300]}", remedy) from error


def available_image() -> str:
    """The reference of the image that tasks run in, which the engine has or can fetch: KIWI_IMAGE, else the one that
    `make images` makes of this checkout.

    Raises:
        EngineError: there is no engine.
        UsageError: the image is not to be had, its tag can move, or KIWI_DOCKER_GPUS is no number.
    """
    from docker.errors import DockerException, ImageNotFound

    from components.image import image_reference, source_tag

    _gpus()
    named = os.environ.get("KIWI_IMAGE")
    image = image_reference() if named else f"kiwi-cpu:{source_tag()}"
    with engine() as client:
        try:
            client.images.get(image)
        except ImageNotFound:
            if not named:
                said = f"the engine has no image of this checkout ({image})"
                raise UsageError(said, "make images, or set KIWI_IMAGE=REPOSITORY@sha256:<digest>") from None
            try:
                client.images.pull(image)
            except DockerException as error:
                said = f"image {image} is neither here nor to be fetched: {' '.join(str(error).split())[:200]}"
                raise UsageError(said, "make images, or docker login to its registry") from None
    return image


def use_docker(configuration: RunConfiguration) -> Any:
    """KFP's Docker runner for this run, with containers started by `run_container`."""
    from kfp import local
    from kfp.local import docker_task_handler

    started = partial(run_container, configuration=configuration, environment_below=environment(configuration))
    docker_task_handler.run_docker_container = started
    return local.DockerRunner(**arguments(configuration))


def arguments(configuration: RunConfiguration) -> dict[str, Any]:
    """What every container of the run is started with.

    The network is the machine's own, so that an address means the same inside and outside; KIWI_DOCKER_NETWORK names
    another, such as that of infra/compose.yaml. KIWI_DOCKER_GPUS is `all` or a number.
    """
    from docker.types import DeviceRequest, Mount

    said: dict[str, Any] = {
        "user": f"{os.getuid()}:{os.getgid()}",
        "network": os.environ.get(NETWORK, "host"),
        "mounts": [
            Mount(str(path), str(path), type="bind", read_only=not writable)
            for path, writable in mounted(configuration).items()
        ],
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "shm_size": SHARED_MEMORY,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,
        "labels": {WORKSPACE_LABEL: str(configuration.workdir), RUN_LABEL: os.environ.get("KIWI_RUN_ID", "")},
    }
    if count := _gpus():
        said["device_requests"] = [DeviceRequest(count=count, capabilities=[["gpu"]])]
    return said


def _gpus() -> int:
    """How many GPUs a container is given; -1 is all of them. Raises UsageError for another word."""
    wanted = os.environ.get(GPUS, "0")
    if wanted != "all" and not re.fullmatch("[0-9]+", wanted):
        raise UsageError(f"{GPUS}={wanted!r} is no number of GPUs", "all, or a number")
    return -1 if wanted == "all" else int(wanted)


def mounted(configuration: RunConfiguration) -> dict[Path, bool]:
    """Path → may be written: the work folder, MLflow's and the registry's databases, and, to be read only, whatever
    else of this machine the configuration or the environment names, at the same paths as here."""
    from kiwi.tracking.server import database_path

    writable = [configuration.workdir]
    if database := database_path(configuration.tracking_uri):
        writable.append(database.parent)
    else:
        writable.append(_state())
    if configuration.store and configuration.store.startswith("/"):
        writable.append(Path(configuration.store))
    writable += [Path(os.environ[name]) for name in WRITTEN if os.environ.get(name, "").startswith("/")]
    for path in writable:
        if not path.exists():
            (path if not path.suffix else path.parent).mkdir(parents=True, exist_ok=True)
    # SQLite writes its journal beside a database, so a file is mounted with its folder.
    found = {path if path.is_dir() else path.parent: True for path in writable}
    read = [*_texts(configuration.model_dump(mode="json")), *_passed().values(), _list_folder(configuration)]
    for text in read:
        path = Path(text)
        if text.startswith("/") and len(path.parts) > 2 and path.exists():
            # The files that a list of pairs names lie in its folder.
            path = path.parent if path.suffix in (".csv", ".tsv") else path
            if not any(path.is_relative_to(above) for above in found):
                found[path] = False
    return found


def _list_folder(configuration: RunConfiguration) -> str:
    """The folder of the benchmark's list, in which the media lie that it names; "" where there is none."""
    from kiwi.benchmark.listed import LISTS

    location = (configuration.benchmark.listed or "").partition("=")[2]
    return str(Path(location).parent) if location.lower().endswith(LISTS) else location


def _state() -> Path:
    """Where the registry's history of a server lies (kiwi/registry/history.py)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kiwi"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _passed() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if PASSED.fullmatch(name) and name not in NOT_PASSED and value
    }


def environment(configuration: RunConfiguration) -> dict[str, str]:
    """The caller's settings and logins, which a task's own go before. Scratch and caches lie in the work folder."""
    temporary = configuration.workdir / "tmp"
    home = temporary / "home"
    home.mkdir(parents=True, exist_ok=True)
    who = os.environ.get("KIWI_USER") or os.environ.get("USER") or f"uid {os.getuid()}"
    below = {"KIWI_LOG": "off", "KIWI_USER": who, "USER": who, "LOGNAME": who, "TOKENIZERS_PARALLELISM": "false"}
    own = {"HOME": str(home), "TMPDIR": str(temporary), "XDG_STATE_HOME": str(_state().parent)}
    return {**below, **_passed(), **own}


def run_container(
    client: docker.DockerClient,
    image: str,
    command: list[str],
    volumes: dict[str, Any],
    *,
    configuration: RunConfiguration,
    environment_below: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> int:
    """Runs one container to its end, prints what it says, and removes it; returns its exit code, never 0 unless the
    engine said so. Stands in for `kfp.local.docker_task_handler.run_docker_container`."""
    from docker.errors import DockerException, NotFound
    from requests import RequestException

    name = f"kiwi-{secrets.token_hex(6)}"  # its host name too, by which its record is known
    merged = {**environment_below, **(environment or {})}
    try:
        container = client.containers.create(
            image, command, name=name, hostname=name, volumes=volumes, environment=merged, **settings
        )
        try:
            container.start()
            _print_logs(container)
            code, why = _ending(container)
        finally:
            _remove(container)
    except NotFound:
        code, why = KILLED, "its container was removed"
    except (DockerException, RequestException) as error:
        code, why = 1, f"Docker: {' '.join(str(error).split())[:300]}"
    if why:
        print(f"EngineError: {why}", flush=True)
        _close_record(configuration, name, why)
    return code


def _print_logs(container: Container) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for chunk in container.logs(stream=True, follow=True):
        print(decoder.decode(chunk), end="", flush=True)


def _ending(container: Container) -> tuple[int, str]:
    """(exit code, what to say of it): nothing of a task that ended by itself, it says so in its record."""
    code = int(container.wait()["StatusCode"])
    container.reload()
    state = container.attrs["State"]
    if state.get("Error"):
        return code or 1, f"its container did not start: {state['Error']}"
    if state.get("OOMKilled"):
        return code or KILLED, "its container was killed: out of memory"
    if code >= 128:
        return code, f"its container was killed (exit code {code}; out of memory?)"
    return code, ""


def _close_record(configuration: RunConfiguration, host: str, why: str) -> None:
    """Ends the record of the task that ran on `host` and cannot do so any more."""
    attempt = os.environ.get("KIWI_RUN_ID", "")
    for file in (Workspace.of(configuration).records / attempt).glob("*.jsonl"):
        events = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
        said = [event for event in events if event.get("event") in ("start", "end")]
        if said and said[-1]["event"] == "start" and said[-1].get("host") == host:
            event = {"event": "end", "time": time.time(), "status": "killed", "error": f"EngineError: {why}"}
            with open(file, "a") as out:
                out.write(json.dumps(event) + "\n")


def remove_containers(workdir: Path) -> int:
    """Removes every container of the runs in a work folder, whatever it is doing; returns how many there were."""
    with engine() as client:
        found = client.containers.list(all=True, filters={"label": f"{WORKSPACE_LABEL}={workdir}"}, ignore_removed=True)
        for container in found:
            _remove(container)
        return len(found)


def _remove(container: Container) -> None:
    """Removes a container, whatever it is doing; one that is gone, or that somebody else is removing, is fine."""
    from docker.errors import APIError

    try:
        container.remove(force=True, v=True)
    except APIError as error:
        if error.status_code not in (404, 409):
            raise
