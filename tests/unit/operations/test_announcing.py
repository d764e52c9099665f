"""The end of a run made known: which alert, what it says, once, and never at the run's expense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.operations import announce, webhook
from kiwi.tracking import task_run
from kiwi.workspace import Workspace, read_json, write_json

Make = Callable[..., RunConfiguration]
DECIDED = {
    "decision": "hold",
    "reasons": ["3.1 is not 0.1 above the champion's 3.2", "identity fell"],
    "candidate": {"name": "kiwi-edit-tiny", "version": "4", "overall": 3.1},
    "champion": {"version": "3", "overall": 3.2},
}


@pytest.fixture
def run(make_configuration: Make) -> RunConfiguration:
    return make_configuration()


def did(run: RunConfiguration, *names: str, note: str = "") -> None:
    for name in names:
        with task_run(run, name) as task:
            if note:
                task.note(note)


def broke(run: RunConfiguration, name: str, error: Exception) -> None:
    with pytest.raises(type(error)), task_run(run, name):
        raise error


def decided(run: RunConfiguration, decision: str, aliases: list[str]) -> None:
    did(run, "register_model", "decide")
    write_json(Workspace.of(run).decision, {**DECIDED, "decision": decision})
    write_json(run.workdir / "model.json", {"name": "kiwi-edit-tiny", "version": "4", "aliases": aliases})


def test_a_failed_run_alerts_with_the_first_failure_and_its_remedy(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    did(run, "plan_shards")
    broke(run, "score", KiwiError("the model server is away", "start it"))
    broke(run, "finish", KiwiError("no report"))
    announce(run, "failed")
    (body,) = receiver.bodies
    assert body["event"] == "run.failed"
    assert (body["task"], body["remedy"]) == ("score", "start it")
    assert body["error"] == "KiwiError: the model server is away"
    assert "Run manual failed at score" in body["text"]
    assert str(run.workdir) in body["text"]


def test_a_run_that_went_well_and_decided_nothing_is_quiet(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    write_json(Workspace.of(run).decision, DECIDED)  # an earlier run's
    did(run, "rest", "finish")
    announce(run, "finished")
    assert receiver.calls == []


def test_a_held_gate_alerts_with_its_reasons(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    decided(run, "hold", ["challenger"])
    did(run, "hold")
    announce(run, "finished")
    (body,) = receiver.bodies
    assert body["event"] == "gate.held"
    assert body["reasons"] == DECIDED["reasons"]
    assert body["waits_for"] is None
    assert "kiwi-edit-tiny version 4 (3.1 overall) is held by the gate" in body["text"]


def test_a_promoted_model_alerts_with_what_it_replaced(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    decided(run, "promote", ["champion"])
    did(run, "promote")
    announce(run, "finished")
    (body,) = receiver.bodies
    assert body["event"] == "model.promoted"
    assert "is the champion, before it version 3" in body["text"]


def test_a_model_that_waits_for_approvals_is_not_called_promoted(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    decided(run, "promote", ["challenger"])
    model = read_json(run.workdir / "model.json")
    waits = {"for": "approvals", "why": "kiwi-edit-tiny version 4 has 0 of 2 approvals"}
    write_json(run.workdir / "model.json", model | {"waits": waits})
    did(run, "promote")
    announce(run, "finished")
    (body,) = receiver.bodies
    assert body["event"] == "gate.held"
    assert body["waits_for"] == "kiwi-edit-tiny version 4 has 0 of 2 approvals"


def test_a_closing_task_that_is_tried_again_repeats_no_alert(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    broke(run, "score", KiwiError("away"))
    announce(run, "failed")
    announce(run, "failed")
    assert len(receiver.calls) == 1
    monkeypatch.setenv("KIWI_RUN_ID", "another")
    broke(run, "score", KiwiError("away"))
    announce(run, "failed")
    assert len(receiver.calls) == 2


def test_an_alert_that_was_not_taken_is_sent_by_the_next_try(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    receiver.answers = [404]
    broke(run, "score", KiwiError("away"))
    announce(run, "failed")
    receiver.answers = [200]
    announce(run, "failed")
    assert len(receiver.calls) == 2


def test_nothing_that_is_wrong_with_alerts_fails_the_run(
    run: RunConfiguration, nobody: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webhook, "LONGEST_PAUSE", 0.01)
    broke(run, "score", KiwiError("away"))
    for url in (nobody, "no address at all: hook-secret-part"):
        monkeypatch.setenv("KIWI_ALERT_URL", url)
        announce(run, "failed")
        said = capsys.readouterr().err
        assert "alerts were not sent" in said
        assert "hook-secret-part" not in said


def test_broken_files_in_the_work_folder_are_told_and_fail_nothing(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    decided(run, "hold", [])
    did(run, "hold")
    Workspace.of(run).decision.write_text('{"decision": ')
    announce(run, "finished")
    assert "files are broken" in capsys.readouterr().err


def test_slack_gets_its_own_form_and_no_markup_of_an_errors(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    monkeypatch.setenv("KIWI_ALERT_FORMAT", "slack")
    broke(run, "score", KiwiError("<!channel> & <http://evil|click>"))
    announce(run, "failed")
    (body,) = receiver.bodies
    assert set(body) == {"text"}
    assert "&lt;!channel&gt; &amp; &lt;http://evil|click&gt;" in body["text"]


def test_no_secret_of_the_environment_is_in_an_alert(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    broke(run, "score", KiwiError("s3 said no to key wJalrXUtnFEMI and http://me:pass-word@host/"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")  # only now: the record was written without knowing it
    announce(run, "failed")
    said = json.dumps(receiver.bodies)
    assert "wJalrXUtnFEMI" not in said
    assert "pass-word" not in said
    assert "s3 said no to key ***" in said


def test_a_failed_closing_makes_the_run_a_failed_one(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kiwi import operations, runs

    def broken(*args: object, **named: object) -> None:
        raise KiwiError("the report cannot be drawn")

    monkeypatch.setattr(runs, "close_run", broken)
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    with pytest.raises(KiwiError, match="cannot be drawn"):
        operations.close_and_announce(run, "SUCCEEDED")
    assert [body["event"] for body in receiver.bodies] == ["run.failed"]


def test_figures_are_a_file_that_the_textfile_collector_reads(
    run: RunConfiguration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    folder = tmp_path / "collector"
    folder.mkdir()
    monkeypatch.setenv("KIWI_METRICS_FOLDER", str(folder))
    monkeypatch.setenv("KIWI_ALERT_URL", "no address: figures are written all the same")
    did(run, "publish_dataset", "train_stage1", "judge")
    broke(run, "register_model", KiwiError("away"))
    write_json(
        run.workdir / "dataset" / "manifest.json", {"quadruplets": 7, "rejected": {"no_region": 2}, "failed": {}}
    )
    write_json(run.workdir / "dataset.json", {"version": "refvie/v1", "path": str(run.workdir / "dataset")})
    write_json(run.workdir / "training" / "stage1.json", {"loss_last": 0.25, "samples_per_second": 9.0})
    write_json(run.workdir / "benchmark" / "scores.json", {"overall": 3.5, "criteria": {"identity": 4.0, "lost": None}})
    announce(run, "failed")
    (file,) = folder.glob("*.prom")
    found = {
        (
            sample.name,
            *sorted(value for key, value in sample.labels.items() if key not in ("workspace", "preset", "model")),
        ): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }
    assert found["kiwi_run_success",] == 0.0
    assert ("kiwi_run_last_success_timestamp_seconds",) not in found
    assert found["kiwi_task_failed", "", "register_model"] == 1.0
    assert found["kiwi_task_failed", "", "judge"] == 0.0
    assert found["kiwi_dataset_pairs", "", "kept"] == 7.0
    assert found["kiwi_dataset_pairs", "no_region", "rejected"] == 2.0
    assert found["kiwi_training_loss_last", "stage1"] == 0.25
    assert found["kiwi_benchmark_score", "overall"] == 3.5
    assert ("kiwi_benchmark_score", "lost") not in found, "what was not measured is no zero"
    assert not any(name.startswith("kiwi_gate") for name, *_ in found)


def test_figures_are_pushed_as_one_group_a_work_folder(
    run: RunConfiguration, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_PUSHGATEWAY_URL", f"http://someone:pass-word@127.0.0.1:{receiver.port}")
    did(run, "finish")
    announce(run, "finished")
    (call,) = receiver.calls
    assert call["path"].startswith("/metrics/job/kiwi/workspace")
    assert call["headers"]["Authorization"].startswith("Basic ")
    assert "kiwi_run_success{" in call["body"]


def test_a_gateway_that_is_away_fails_nothing(
    run: RunConfiguration, nobody: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KIWI_PUSHGATEWAY_URL", nobody)
    did(run, "finish")
    announce(run, "finished")
    assert "the Pushgateway at 127.0.0.1 does not answer" in capsys.readouterr().err
