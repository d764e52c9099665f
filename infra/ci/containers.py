"""CI's Docker stage: builds every image from nothing and tests images and containers, on an engine of its own.

    python infra/ci/containers.py [--minutes 25]

An engine that answers is used as it is. Else, as root on Debian with 25 GB to spare, one is installed and started
beside whatever runs here, without touching the network's rules. Where no engine or base image can be had, the reason
is printed and the exit code is 0. A build or a test that fails, is skipped, or does not end in time is exit code 1.
At the end the engine, its images and its folder are gone; Debian's packages stay.
"""

import argparse
import contextlib
import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from components.image import ROOT, source_tag

PLACE = Path("/var/lib/kiwi-ci-docker")  # one place, so that the next run clears what a killed one left
ROOM = 25e9
TARGETS = ("client", "cpu", "gpu")
SKIPPED = re.compile(r'<testsuite [^>]*skipped="([1-9]\d*)"')
TESTS = ("tests/integration/test_images.py", "tests/integration/test_docker_backend.py")
# Where no registry gives the public base, a Debian with the same Python stands in.
SUITE, BASE = "bookworm", "kiwi-ci-base:bookworm"
IN_BASE = "ca-certificates,python3,python3-pip,python3-venv"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# How Debian is told that a package which is installed starts no service of the machine's.
POLICY = Path("/usr/sbin/policy-rc.d")
NO_SERVICES = "#!/bin/sh\n# Written by kiwi's CI while it installs packages.\nexit 101\n"


class StepError(Exception):
    """A step of the stage failed or did not end in time: its last words."""


@dataclass(frozen=True)
class Engine:
    """How commands reach an engine, and a folder for what the stage makes."""

    environment: dict[str, str]
    folder: Path


@dataclass(frozen=True)
class Clock:
    """The time that the whole stage has."""

    minutes: float
    started: float = field(default_factory=time.monotonic)

    def left(self, at_most: float) -> float:
        return max(1.0, min(at_most, self.started + 60 * self.minutes - time.monotonic()))

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        print(f"docker stage: {name}", flush=True)
        yield
        print(f"docker stage: {name} took {time.monotonic() - started:.0f} s", flush=True)


def run(command: list[str], seconds: float, environment: dict[str, str], quiet: bool = True) -> str:
    """What a command printed, where it is quiet. Raises StepError, after killing all that it started."""
    heard = subprocess.PIPE if quiet else None
    name = f"`{' '.join(command[:4])}`"
    try:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=ROOT, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=heard, stderr=subprocess.STDOUT if quiet else None,
        )  # fmt: skip
    except OSError as error:
        raise StepError(f"{name} does not run: {error}") from error
    with process:
        try:
            said = process.communicate(timeout=seconds)[0] or ""
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise StepError(f"{name} did not end in {seconds:.0f} s") from None
            raise
    if process.returncode:
        words = " ".join(said.split("\n")[-4:]).strip()[-400:]
        raise StepError(f"{name} failed ({process.returncode}){': ' if words else ''}{words}")
    return said


def answers(environment: dict[str, str]) -> bool:
    if shutil.which("docker") is None:
        return False
    asked = ["docker", "info", "--format", "{{.ServerVersion}}"]
    with contextlib.suppress(StepError):
        return bool(run(asked, 60, environment).strip())
    return False


@contextlib.contextmanager
def engine_at_hand() -> Iterator[Engine]:
    """The engine that answers here. What was on it stays; what the stage makes is removed from it."""
    root = Path(run(["docker", "info", "--format", "{{.DockerRootDir}}"], 60, {}).strip())
    if root.exists():
        need_room(root)
    before = images()
    made = {*(f"kiwi-{target}:{source_tag()}" for target in TARGETS), BASE}
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Engine({}, Path(folder))
    finally:
        try:
            if names := sorted(made & images() - before):
                run(["docker", "image", "rm", "--force", *names], 120, {})
        except StepError as error:  # what the stage found out stands
            print(f"docker stage: its images were not removed: {error}", flush=True)


def images() -> set[str]:
    return set(run(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"], 60, {}).split())


@contextlib.contextmanager
def own_engine(clock: Clock) -> Iterator[Engine]:
    """An engine in a folder and on a socket of its own, which are gone afterwards. Raises StepError."""
    if os.getuid():
        raise StepError("no engine answers, and only root can install and start one")
    with alone():
        clear()
        need_room(PLACE.parent)
        with clock.step("installing Docker's engine"):
            install(clock)
        PLACE.mkdir(mode=0o711)
        try:
            with clock.step("starting it"):
                start(clock)
            yield Engine({"DOCKER_HOST": address()}, PLACE)
        finally:
            with undisturbed():
                clear()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keeps a second run of the stage away from PLACE. The lock is on the folder above, so that no file of it stays."""
    lock = os.open(PLACE.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepError("another run of this stage is at work on this machine") from None
        yield
    finally:
        os.close(lock)


def address() -> str:
    return f"unix://{PLACE}/docker.sock"


def need_room(place: Path) -> None:
    free = shutil.disk_usage(place).free
    if free < ROOM:
        raise StepError(f"{free / 1e9:.0f} GB are free at {place}, images and runs need {ROOM / 1e9:.0f}")


def install(clock: Clock) -> None:
    """Debian's packages, those that are missing."""
    missing = [] if shutil.which("dockerd") else ["docker.io"]
    missing += [] if shutil.which("debootstrap") else ["debootstrap"]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise StepError("no engine answers, and this is no Debian, whose packages would be installed")
    get = ["apt-get", "-qq", "-o", "Acquire::Retries=2"]
    with services_stay_off():
        run([*get, "update"], clock.left(180), {})
        # From Debian 13 on, the client is a package of its own.
        if shutil.which("docker") is None and run(["apt-cache", "pkgnames", "docker-cli"], clock.left(60), {}).strip():
            missing.append("docker-cli")
        install = [*get, "install", "-y", "--no-install-recommends", *missing]
        run(install, clock.left(300), {"DEBIAN_FRONTEND": "noninteractive"})


@contextlib.contextmanager
def services_stay_off() -> Iterator[None]:
    if POLICY.exists() and POLICY.read_text() != NO_SERVICES:
        yield
        return
    POLICY.write_text(NO_SERVICES)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def start(clock: Clock) -> None:
    """Starts the engine and waits until it answers. Raises StepError with the last words of its log."""
    # It ends with this process, however that ends.
    command = ["setpriv", "--pdeathsig", "TERM", "dockerd", "--host", address(), "--pidfile", f"{PLACE}/dockerd.pid"]
    command += ["--data-root", f"{PLACE}/data", "--exec-root", f"{PLACE}/exec"]
    # Containers here have the machine's network or none: no bridge is needed, and no rule of the machine's is touched.
    # An engine without a bridge removes docker0, which can only be a dead engine's here: a living one would be used.
    command += ["--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:  # containers may not ask for more open files than this machine allows
        command += ["--default-ulimit", f"nofile={hard}:{hard}"]
    with open(PLACE / "dockerd.log", "w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    until = time.monotonic() + clock.left(90)
    while not answers({"DOCKER_HOST": address()}):
        if process.poll() is not None or time.monotonic() > until:
            end(process)  # it may not have told its number yet, by which `clear` would find it
            words = " ".join((PLACE / "dockerd.log").read_text().splitlines()[-2:])[-400:]
            raise StepError(f"the engine does not start: {words}")
        time.sleep(0.5)
    driver = run(["docker", "--host", address(), "info", "--format", "{{.Driver}}"], clock.left(60), {}).strip()
    if driver == "vfs":
        raise StepError("this disk has no overlay file system, and without one each layer is a whole copy of the last")


def end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def clear() -> None:
    """Ends the engine of this or of a killed run with its containers, and removes its folder."""
    if not PLACE.exists():
        return
    if engine_pid():
        with contextlib.suppress(StepError):
            found = run(["docker", "--host", address(), "ps", "--all", "--quiet"], 30, {}).split()
            run(["docker", "--host", address(), "rm", "--force", *found], 60, {})
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + 30
        if pid := engine_pid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while engine_pid() and time.monotonic() < until:
            time.sleep(0.2)
    for mount in reversed(mounts()):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
    if mounts():  # what is mounted may be the machine's own
        sys.exit(f"docker stage: {mounts()[0]} stays mounted, so {PLACE} was not removed")
    shutil.rmtree(PLACE)


def engine_pid() -> int | None:
    """The engine that PLACE belongs to, while it lives; a dead one's number may be another program's by now."""
    try:
        pid = int((PLACE / "dockerd.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if f"{PLACE}/dockerd.pid".encode() in words else None


def mounts() -> list[str]:
    """What is mounted below PLACE, in the order of mounting."""
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [place for place in places if place.startswith(f"{PLACE}/")]


def base_image(clock: Clock, engine: Engine) -> str:
    """The Dockerfile's own base where the engine has or can fetch it, else a Debian made here. Raises StepError."""
    named = re.search(r"^ARG BASE=(\S+)$", (ROOT / "infra/images/Dockerfile").read_text(), re.M)
    if named:
        for command in (["docker", "image", "inspect", named[1]], ["docker", "pull", "--quiet", named[1]]):
            with contextlib.suppress(StepError):
                run(command, clock.left(120), engine.environment)
                return named[1]
    with clock.step(f"making a base image of Debian {SUITE}, as no registry answers"):
        debian_image(clock, engine)
    return BASE


def debian_image(clock: Clock, engine: Engine) -> None:
    if os.getuid() or shutil.which("debootstrap") is None:
        raise StepError("without a registry, a base image takes root and debootstrap")
    root, archive = engine.folder / "base", engine.folder / "base.tar"
    # In a mount namespace of its own, so that none of its mounts outlives it.
    make = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={IN_BASE}", SUITE, str(root)]
    run(make, clock.left(420), {})
    # It trusts whom this machine trusts: the package index may have a certificate of the house.
    if CERTIFICATES.exists():
        shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    run(["tar", "--create", "--file", str(archive), "--directory", str(root), "."], clock.left(120), {})
    trust = f"ENV PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES}"
    run(["docker", "import", "--change", trust, str(archive), BASE], clock.left(120), engine.environment)
    shutil.rmtree(root)
    archive.unlink()


def build_and_test(clock: Clock, engine: Engine, base: str) -> None:
    """Raises StepError where the build failed, a test failed, or one was skipped: all that they need is here."""
    with clock.step("building the images"):
        build = [sys.executable, "infra/images/build.py", "--base", base]
        build += [word for target in TARGETS for word in ("--target", target)]
        run(build, clock.left(3600), engine.environment, quiet=False)
    with clock.step("testing images and containers"):
        try:
            test(clock, engine)
        except StepError as error:  # containers on a machine of unknown load
            print(f"docker stage: {error}; what failed is tried once more", flush=True)
            test(clock, engine, "--last-failed", "--last-failed-no-failures", "none")
    skipped = [found[1] for report in engine.folder.glob("*.xml") if (found := SKIPPED.search(report.read_text()))]
    if skipped:
        raise StepError(f"{skipped[0]} tests were skipped")


def test(clock: Clock, engine: Engine, *options: str) -> None:
    """Raises StepError where a test failed."""
    report = engine.folder / f"report-{len(options)}.xml"
    tests = [sys.executable, "-m", "pytest", *TESTS, "-m", "services", f"--junit-xml={report}", *options]
    tests += ["-o", f"cache_dir={engine.folder / 'cache'}", f"--basetemp={engine.folder / 'tests'}"]
    run(tests, clock.left(3600), engine.environment, quiet=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="what the whole stage may take")
    clock = Clock(parser.parse_args().minutes)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.environ.pop("KIWI_IMAGE", None)  # the images of this checkout are meant
    fault = ""
    try:
        with engine_at_hand() if answers({}) else own_engine(clock) as engine:
            base = base_image(clock, engine)
            try:
                build_and_test(clock, engine, base)
            except StepError as error:
                fault = str(error)
    except StepError as error:
        print(f"docker stage: SKIPPED, {error}", flush=True)
        return
    print(f"docker stage: {f'FAILED, {fault}' if fault else 'passed'}, {time.monotonic() - clock.started:.0f} s in all")
    sys.exit(1 if fault else 0)


if __name__ == "__main__":
    main()
