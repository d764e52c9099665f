"""What the tests against real services share: an S3 gateway of our own, which can be frozen, thawed and taken away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = ("ceph-mon", "ceph-osd", "ceph-mgr", "radosgw", "monmaptool", "ceph", "radosgw-admin")
PACKAGES = "ceph-mon ceph-osd ceph-mgr ceph-common radosgw"
KEY, SECRET = "kiwi", "a-secret-of-the-tests"

# The monitor's floors of free disk are taken away: it holds a few megabytes for minutes, and by default it ends itself,
# without which every command waits for ever, where a large disk is more than 95% full.
SETTINGS = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{monitor}
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
run dir = {root}/run
admin socket = {root}/run/$name.asok
pid file = {root}/run/$name.pid
log file = {root}/log/$name.log
keyring = {root}/keyring
mon data = {root}/mon
mon data avail warn = 0
mon data avail crit = 0
osd data = {root}/osd
mgr data = {root}/mgr
osd objectstore = memstore
memstore device bytes = 4294967296
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {root}/rgw
rgw dynamic resharding = false
"""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "services: needs a real service; `make test-services` runs them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need a service, whether they say so or not."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.services)


@dataclass
class Gateway:
    """A one-host Ceph with its S3 gateway, all in memory and in one folder.

    Attributes:
        endpoint: its address, for AWS_ENDPOINT_URL.
    """

    root: Path
    monitor: int
    port: int
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        for name in ("mon", "osd", "mgr", "rgw", "run", "log"):
            (self.root / name).mkdir()
        (self.root / "keyring").touch()
        fsid = str(uuid.uuid4())
        said = SETTINGS.format(fsid=fsid, root=self.root, monitor=self.monitor, port=self.port)
        (self.root / "ceph.conf").write_text(said)
        address = f"[v1:127.0.0.1:{self.monitor}]"
        self._do("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(self.root / "monmap"))
        self._do("ceph-mon", "-i", "a", "--mkfs", "--monmap", str(self.root / "monmap"))
        self._run("ceph-mon", "-i", "a")
        self._do("ceph", "osd", "create")
        self._do("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(uuid.uuid4()))
        self._do("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=localhost")
        self._run("ceph-mgr", "-i", "x")
        self._run("ceph-osd", "-i", "0")
        self._run("radosgw", "-n", "client.rgw")
        self._wait()
        user = ("--uid=kiwi", "--display-name=kiwi", f"--access-key={KEY}", f"--secret-key={SECRET}")
        self._do("radosgw-admin", "user", "create", *user)

    def pause(self) -> None:
        self.daemons[-1].send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.daemons[-1].send_signal(signal.SIGCONT)

    def pause_for(self, seconds: float) -> threading.Timer:
        """Freezes the gateway now and thaws it after `seconds`."""
        self.pause()
        timer = threading.Timer(seconds, self.resume)
        timer.start()
        return timer

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGCONT)
            daemon.kill()
            daemon.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.root / "ceph.conf")}

    def _do(self, *command: str, seconds: float = 120.0) -> None:
        """Runs one command to its end; its own patience is endless, so a daemon that died is looked for meanwhile."""
        told = self.root / "log" / "commands.out"
        with open(told, "ab") as log:
            work = subprocess.Popen(command, env=self._environment(), stdout=log, stderr=log, cwd=self.root)
        until = time.monotonic() + seconds
        try:
            while work.poll() is None:
                self._daemons_live()
                if time.monotonic() > until:
                    raise RuntimeError(f"{' '.join(command)} took over {seconds:.0f} s: {self._last_words()}")
                time.sleep(0.05)
        finally:
            work.kill()
            work.wait()
        if work.returncode:
            raise RuntimeError(f"{' '.join(command)}: {told.read_text(errors='replace')[-2000:]}")

    def _daemons_live(self) -> None:
        for daemon in self.daemons:
            if daemon.poll() is not None:
                raise RuntimeError(f"{daemon.args} ended with {daemon.returncode}: {self._last_words()}")

    def _run(self, *command: str) -> None:
        with open(self.root / "log" / f"{command[0]}.out", "wb") as log:
            self.daemons.append(
                subprocess.Popen([*command, "-f"], env=self._environment(), stdout=log, stderr=log, cwd=self.root)
            )

    def _wait(self, seconds: float = 120.0) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._daemons_live()
            try:
                urllib.request.urlopen(self.endpoint, timeout=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"no gateway at {self.endpoint} after {seconds:.0f} s: {self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in self.root.glob("log/*"))


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """A real S3 service on loopback for the session; skips where Ceph's programs are not installed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install --no-install-recommends {PACKAGES}")
    service = _started()
    yield service
    service.stop()


def _started(tries: int = 5) -> Gateway:
    """A gateway that runs; on a busy machine a port may be taken meanwhile, or a daemon give up too early."""
    for attempt in range(1, tries + 1):
        # a short path: that of a Unix socket has 107 characters
        service = Gateway(Path(tempfile.mkdtemp(prefix="kiwi-s3-")), _free_port(), _free_port())
        try:
            service.start()
            return service
        except BaseException as error:
            service.stop()
            if attempt == tries or not isinstance(error, RuntimeError):
                raise
            warnings.warn(f"the gateway did not start, trying again: {error}", stacklevel=1)
    raise AssertionError("unreachable")


@pytest.fixture
def s3(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """The gateway, named and with credentials by the usual variables; running, whatever the test before did to it."""
    _name(gateway, monkeypatch)
    gateway.resume()
    yield gateway
    gateway.resume()


@pytest.fixture
def bucket(s3: Gateway) -> str:
    """A new bucket's address."""
    import boto3

    name = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


def _name(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "S3_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN", "KIWI_STORAGE_PATIENCE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("KIWI_DVC_REMOTE", "KIWI_RUN_ID", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
