"""Log lines: one JSON object an event, with run, task, shard and sample, only where asked for, and without secrets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError, UsageError
from kiwi.tracking import read_records, task_run
from kiwi.tracking.redaction import redact, secrets

Make = Callable[..., RunConfiguration]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Taking over Python's logging is for a process's life; tests put it back."""
    monkeypatch.delenv("KIWI_LOG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    root = logging.getLogger()
    handlers, level, hook = list(root.handlers), root.level, sys.excepthook
    yield
    root.handlers, sys.excepthook = handlers, hook
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(captured: Captured) -> list[dict]:
    return [json.loads(line) for line in captured.readouterr().err.splitlines()]


def work(configuration: RunConfiguration) -> None:
    with task_run(configuration, "score", shard=2) as task:
        task.params({"curator": "vlm"})
        task.metrics({"loss": float("nan")}, step=1)
        task.sample("a1b2", "failed", "unreadable", "not a video")
        task.progress(4, 4)


def test_every_event_is_one_json_line_with_run_task_and_shard(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("KIWI_LOG", "json")
    monkeypatch.setenv("KIWI_RUN_ID", "demo-1")
    work(make_configuration())
    said = lines(capsys)
    assert [line["event"] for line in said] == ["start", "params", "metrics", "sample", "progress", "end"]
    assert {(line["run"], line["task"], line["shard"]) for line in said} == {("demo-1", "score", 2)}
    assert all(line["time"].endswith("Z") and line["level"] for line in said)
    (sample,) = [line for line in said if line["event"] == "sample"]
    assert (sample["sample"], sample["status"], sample["reason"]) == ("a1b2", "failed", "unreadable")
    assert sample["level"] == "warning"
    assert said[2]["metrics"] == {"loss": "nan"}, "JSON knows no NaN"


def test_a_laptop_stays_quiet_a_pod_speaks_json_and_text_is_for_people(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    configuration = make_configuration()
    work(configuration)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    work(configuration)
    assert len(lines(capsys)) == 6
    monkeypatch.setenv("KIWI_LOG", "text")
    work(configuration)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6
    assert "WARNING score-2 sample sample=a1b2 status=failed" in said[3]


def test_an_unknown_kind_of_log_is_refused(make_configuration: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_LOG", "xml")
    with pytest.raises(UsageError, match="KIWI_LOG='xml' is no kind of log"):
        work(make_configuration())


def test_a_failure_is_a_line_with_its_error_and_remedy(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("KIWI_LOG", "json")
    with pytest.raises(KiwiError), task_run(make_configuration(), "judge"):
        raise KiwiError("the server is away", "start it")
    last = lines(capsys)[-1]
    assert (last["level"], last["status"], last["remedy"]) == ("error", "failed", "start it")
    assert last["error"] == "KiwiError: the server is away"


def test_what_libraries_say_becomes_lines_of_the_task(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("KIWI_LOG", "json")
    with task_run(make_configuration(), "segment"):
        logging.getLogger("some.library").warning("slow\ndisk %d", 3)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("deprecated", stacklevel=1)
    said = [line for line in lines(capsys) if line["event"] == "log"]
    assert (said[0]["task"], said[0]["logger"], said[0]["message"]) == ("segment", "some.library", "slow\ndisk 3")
    assert any("deprecated" in line["message"] for line in said)


def test_an_uncaught_error_is_one_line_without_secrets() -> None:
    program = (
        "from kiwi.tracking.logs import log, scope\n"
        "with scope('r', 't', None): log('start')\n"
        "raise ValueError('the key is s3cr3t-value')\n"
    )
    environment = {"KIWI_LOG": "json", "AWS_SECRET_ACCESS_KEY": "s3cr3t-value", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in said] == ["start", "uncaught"]
    assert said[1]["message"] == "ValueError: the key is ***"
    assert "s3cr3t-value" not in done.stderr


def test_progress_is_no_flood(make_configuration: Make, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("KIWI_LOG", "json")
    monkeypatch.setattr("kiwi.tracking.records.PROGRESS_SECONDS", 0.0)
    with task_run(make_configuration(), "train") as task:
        for step in range(1, 101):
            task.progress(step, 100)
    said = [line["done"] for line in lines(capsys) if line["event"] == "progress"]
    assert said == [1, 100]


def test_a_failed_row_of_curation_is_logged_with_its_sample_id(
    make_configuration: Make, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from kiwi.configuration import CurationSettings, SourceSettings
    from kiwi.curation.plan import plan_shards
    from kiwi.curation.stages import run_stage

    folder = make_configuration().workdir
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "pairs.csv").write_text("src_video,tgt_video,prompt\nbroken.mp4,broken.mp4,make it red\n")
    source = SourceSettings(kind="pairs", pairs=str(folder / "pairs.csv"))
    configuration = make_configuration("other", source=source, curation=CurationSettings(shards=1))
    with task_run(configuration, "plan_shards") as task:
        plan_shards(configuration, task)
    monkeypatch.setenv("KIWI_LOG", "json")
    with task_run(configuration, "ingest", shard=0) as task:
        run_stage(configuration, "ingest", 0, task)
    (sample,) = [line for line in lines(capsys) if line["event"] == "sample"]
    assert sample["status"] == "failed"
    assert len(sample["sample"]) >= 16, sample
    assert (sample["task"], sample["shard"]) == ("ingest", 0)


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("MLFLOW_TRACKING_PASSWORD", "correct horse", "correct horse"),
        ("HF_TOKEN", "abcdef-token", "abcdef-token"),
        ("KIWI_ALERT_URL", "https://hooks.example/a/b", "https://hooks.example/a/b"),
        ("KIWI_REGISTRY_URL", "postgresql://kiwi:p%40ssword@db/kiwi", "p@ssword"),
        ("KIWI_REGISTRY_URL", "postgresql://kiwi:p%40ssword@db/kiwi", "p%40ssword"),
        ("KIWI_VLM_JUDGE_API_KEY", "sk-123456", "sk-123456"),
    ],
)
def test_values_of_secrets_are_blacked_out(name: str, value: str, hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"before {hidden} after") == "before *** after"


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if redact(os.environ[name]) != os.environ[name]:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "kiwi-user")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-friend")
    monkeypatch.setenv("KIWI_KFP_TOKEN_FILE", "/var/run/token-file")
    monkeypatch.setenv("MY_TOKEN", "abc")
    assert secrets() == ()
    assert redact("kiwi-user false-friend abc /var/run/token-file") == "kiwi-user false-friend abc /var/run/token-file"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:pw@h/d", "postgresql://u:***@h/d"),
        ("Authorization: Bearer abcdefghijk", "Authorization: Bearer ***"),
        ("https://hooks.slack.com/services/T1/B2/xyz", "https://hooks.slack.com/services/***"),
        ("GET /a?X-Amz-Signature=0a1b&x=1", "GET /a?X-Amz-Signature=***&x=1"),
    ],
)
def test_what_looks_like_a_login_is_blacked_out_without_the_environments_help(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_record_holds_no_secret(make_configuration: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtnFEMI")
    configuration = make_configuration()

    def work() -> None:
        with task_run(configuration, "score") as task:
            task.params({"address": "http://me:pass-word@host"})
            task.note("wJalr/XUtnFEMI")
            raise KiwiError("no key wJalr/XUtnFEMI", "not wJalr/XUtnFEMI")

    with pytest.raises(KiwiError):
        work()
    (record,) = read_records(configuration.workdir, "manual")
    assert record.params == {"address": "http://me:***@host"}
    assert (record.notes, record.error, record.remedy) == (["***"], "KiwiError: no key ***", "not ***")
