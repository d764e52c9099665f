"""What a run survives, with real services and real kills: S3 away, MLflow away, its own death, and a twin."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kiwi import registry, storage
from kiwi.configuration import GateSettings, RunConfiguration
from kiwi.lineage import describe, list_versions
from kiwi.presets import build
from kiwi.tracking import TrackingUnavailable, read_records, send, task_run
from kiwi.tracking.server import connect
from kiwi.workspace import Workspace, read_json
from tests.integration.test_preference_postgres import database

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]
__all__ = ["database"]

PROGRAM = Path(__file__).with_name("short_run.py")
REPOSITORY = PROGRAM.parents[2]
HIDDEN = tuple(f"{name}-kept-to-itself" for name in ("s3", "mlflow", "hub", "judge", "hook", "gateway", "registry"))
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": HIDDEN[0],
    "MLFLOW_TRACKING_PASSWORD": HIDDEN[1],
    "HF_TOKEN": HIDDEN[2],
    "KIWI_VLM_API_KEY": HIDDEN[3],
    "KIWI_ALERT_URL": f"http://127.0.0.1:9/{HIDDEN[4]}",
    "KIWI_PUSHGATEWAY_URL": f"http://kiwi:{HIDDEN[5]}@127.0.0.1:9",
    "PGPASSWORD": HIDDEN[6],
}
SMALL = (
    "source.clips=14", "source.images=2", "source.frames=5", "curation.shards=2", "curation.chunk_rows=2",
    "benchmark.samples_per_kind=1", "benchmark.sampling_steps=1", "trainer.log_every=1",
)  # fmt: skip


def configured(root: Path, tracking_uri: str = "", store: str | None = None) -> RunConfiguration:
    """The tiny preset at its smallest: 16 pairs, two stages of four steps, a gate that asks for a lead alone."""
    root.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri or f"sqlite:///{root}/mlflow.db"
    whole = build("tiny", workspace=root / "work", tracking_uri=uri, store=store, overrides=SMALL)
    stages = tuple(stage.model_copy(update={"steps": 4}) for stage in (whole.stages[0], whole.stages[-1]))
    return whole.model_copy(update={"stages": stages, "gate": GateSettings()})


def started(configuration: RunConfiguration, run: str, stop: str = "", **environment: str) -> subprocess.Popen[str]:
    """The run as a process; `run` is its id, as a cluster gives it."""
    path = Path(configuration.workspace).with_suffix(f".{run}.json")
    path.write_text(configuration.canonical())
    said = {**os.environ, "KIWI_RUN_ID": run, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(PROGRAM), str(path), *([stop] if stop else [])]
    with open(path.with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, env=said, stdout=log, stderr=subprocess.STDOUT, text=True)


def log_of(configuration: RunConfiguration, run: str) -> str:
    return Path(configuration.workspace).with_suffix(f".{run}.log").read_text()


def ended(process: subprocess.Popen[str], configuration: RunConfiguration, run: str, seconds: float = 600) -> None:
    assert process.wait(seconds) == 0, log_of(configuration, run)[-4000:]


def until(true: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.05)


def result(configuration: RunConfiguration) -> dict[str, Any]:
    """What a run computed, whatever happened to it on the way."""
    root = Path(configuration.workspace)
    dataset = read_json(root / "dataset.json")
    stages = [read_json(root / "training" / f"{stage.name}.json") for stage in configuration.stages]
    return {
        "dataset": describe(Path(dataset["path"]))["digest"],
        "losses": [(stage["steps"], stage["loss_first"], stage["loss_last"]) for stage in stages],
        "scores": {name: read_json(root / "benchmark" / "scores.json")[name] for name in ("overall", "criteria")},
    }


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("KIWI_", "MLFLOW_")) and name != "KIWI_TEST_POSTGRES":
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> RunConfiguration:
    """A run that nothing happened to, with every kind of secret in its environment."""
    configuration = configured(tmp_path_factory.mktemp("undisturbed"))
    ended(started(configuration, "calm", KIWI_LOG="json", **SECRETS), configuration, "calm")
    return configuration


@pytest.fixture(scope="module")
def undisturbed(calm: RunConfiguration) -> dict[str, Any]:
    return result(calm)


def test_no_secret_of_the_environment_is_in_anything_that_a_run_leaves(calm: RunConfiguration) -> None:
    """Records, logs, report, MLflow's database, checkpoints, the dataset's git objects: every byte is searched."""
    root = Path(calm.workspace).parent
    left = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    repository = Workspace.of(calm).repository
    asked = ["git", "-c", "safe.directory=*", "cat-file", "--batch-all-objects", "--batch"]
    left["git objects"] = subprocess.run(asked, cwd=repository, capture_output=True, check=True).stdout
    assert b"refvie/v1" in left["git objects"], "it is the history that was searched"
    assert b"calm" in left["mlflow.db"]
    log = left["work.calm.log"]
    assert b"alerts were not sent" in log
    assert b"figures were not pushed" in log
    for value in HIDDEN:
        assert [name for name, data in left.items() if value.encode() in data] == []


def test_a_store_frozen_for_a_minute_and_again_while_the_model_is_registered_only_delays_a_run(
    s3: Any, bucket: str, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    configuration = configured(tmp_path, store=f"{bucket}/curation")
    run = started(
        configuration, "frozen", KIWI_DVC_REMOTE=f"{bucket}/dvc", KIWI_ARTIFACT_ROOT=f"{bucket}/mlflow"
    )  # fmt: skip
    try:
        until(lambda: storage.list_files(f"{bucket}/curation"), run)
        s3.pause()
        time.sleep(60)
        assert run.poll() is None, "the run ended while its store was frozen"
        s3.resume()
        until(lambda: "register_model" in log_of(configuration, "frozen"), run)
        s3.pause_for(20).join()
        ended(run, configuration, "frozen")
    finally:
        s3.resume()
        run.kill()
    assert result(configuration) == undisturbed
    for place in ("curation", "dvc", "mlflow"):
        assert storage.list_files(f"{bucket}/{place}"), f"{place} lies in the store"
    assert read_json(Workspace.of(configuration).run_record)["status"] == "finished"


def test_a_run_killed_in_task_after_task_goes_on_to_the_same_result(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    configuration = configured(tmp_path)
    for stop in ("score:SIGKILL", "train_stage1:SIGKILL", "train_stage3:SIGTERM"):
        run = started(configuration, "killed", stop)
        code = run.wait(600)
        said = log_of(configuration, "killed")[-4000:]
        assert code == -signal.SIGKILL if stop.endswith("KILL") else code > 0, said
    assert "Preempted" in said
    ended(started(configuration, "killed"), configuration, "killed")
    assert result(configuration) == undisturbed
    tasks = {task.label: task for task in read_records(configuration.workdir, "killed")}
    assert {task.status for task in tasks.values()} == {"finished"}
    assert (tasks["train_stage1"].tries, tasks["train_stage3"].tries) == (3, 2)
    steps = [step for step, _ in tasks["train_stage3"].curves["loss"]]
    assert steps == sorted(set(steps)), "after SIGTERM no step was done twice"


def test_two_users_who_submit_the_same_configuration_at_once_both_finish_and_agree(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    configuration = configured(tmp_path)
    connect(configuration.tracking_uri)
    runs = {name: started(configuration, name) for name in ("ann", "bob")}
    for name, run in runs.items():
        ended(run, configuration, name)
    assert result(configuration) == undisturbed
    assert [version["number"] for version in list_versions(Workspace.of(configuration).repository)] == [1]
    for name in runs:
        assert {task.status for task in read_records(configuration.workdir, name)} == {"finished"}
    attempts = read_json(Workspace.of(configuration).run_record)["attempts"]
    assert {attempt["id"]: attempt["status"] for attempt in attempts} == dict.fromkeys(runs, "finished")
    known = registry.list_versions(configuration.tracking_uri, configuration.model_name)
    champions = [version.version for version in known if "champion" in version.aliases]
    assert len(champions) == 1
    assert len(known) == 2, "each run registered its own"


@dataclass
class Server:
    """A real MLflow server, which can be killed and started again at the same address."""

    backend: str
    root: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.backend, "--artifacts-destination", str(self.root / "artifacts")]
        with open(self.root / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1"], stdout=log, stderr=log, start_new_session=True, cwd=self.root
            )
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                alive = self.process.poll() is None and time.monotonic() < end
                assert alive, (self.root / "server.log").read_text()
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, free_port: int) -> Iterator[Server]:
    """On PostgreSQL where it is installed, else on SQLite."""
    try:
        backend = request.getfixturevalue("database")
    except pytest.skip.Exception:
        backend = f"sqlite:///{tmp_path}/mlflow.db"
    found = Server(backend, tmp_path, free_port)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def train(configuration: RunConfiguration, name: str, steps: int, artifact: Path) -> None:
    with task_run(configuration, name) as task:
        task.params({"rate": 0.5})
        for step in range(steps):
            task.metrics({"loss": 1 / (step + 1), "norm": float(step)}, step=step)
        task.tags({"dataset.revision": "abc"})
        task.artifact(artifact)


def test_nothing_is_missing_of_what_was_logged_while_mlflow_was_killed_and_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = configured(tmp_path / "run", server.uri)
    Path(configuration.workspace).mkdir()
    (note := tmp_path / "note.txt").write_text("as it was")
    train(configuration, "first", 50, note)
    send(configuration)

    # In the middle of sending: the server dies between two of the requests that one task's figures take.
    client = connect(server.uri)
    batch, calls = client.log_batch, []

    def dying(*said: Any, **named: Any) -> None:
        batch(*said, **named)
        calls.append(said)
        server.kill()

    train(configuration, "second", 700, note)
    with monkeypatch.context() as patch:
        patch.setattr(client, "log_batch", dying)
        with pytest.raises(TrackingUnavailable):
            send(configuration)
    assert len(calls) == 1, "one request came through"

    # While it is away: the task works and records as ever, and closing the run says so.
    began = time.monotonic()
    train(configuration, "third", 200, note)
    assert time.monotonic() - began < 30, "a task waited for the server"
    with pytest.raises(TrackingUnavailable, match="does not answer"):
        send(configuration, "finished")

    server.start()
    sent = send(configuration, "finished")
    assert send(configuration, "finished")["sent"] == 0
    runs = client.search_runs([sent["experiment_id"]], max_results=100)
    by_task = {run.data.tags.get("kiwi.task", "parent"): run for run in runs}
    assert sorted(by_task) == ["first", "parent", "second", "third"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for name, steps in (("first", 50), ("second", 700), ("third", 200)):
        run = by_task[name]
        for key, value in (("loss", lambda step: 1 / (step + 1)), ("norm", float)):
            history = sorted((it.step, it.value) for it in client.get_metric_history(run.info.run_id, key))
            assert history == [(step, value(step)) for step in range(steps)], f"{name}: each step once"
        assert run.data.params["rate"] == "0.5"
        assert run.data.tags["dataset.revision"] == "abc"
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
