"""The schedule file is refused whole or applied whole, and applying makes the cluster agree with it."""

from __future__ import annotations

import pytest
import yaml

from kiwi.cluster.api import ClusterError, NotAllowed
from kiwi.cluster.cron import check_cron
from kiwi.cluster.schedules import Desired, apply, configuration_of, differences, read_schedules
from kiwi.cluster.submitting import Place
from kiwi.errors import UsageError
from pipelines.compiling import check_pipeline

SPEC = {"pipeline_spec": {"pipelineInfo": {"name": "kiwi-retrain"}}, "platform_spec": {}}
ENTRY = {
    "name": "nightly", "pipeline": "retrain", "profile": "prod", "cron": "0 30 2 * * *", "preset": "tiny",
    "workspace": "/work/demo", "tracking_uri": "http://mlflow:5000",
}  # fmt: skip


def write(path, *entries):
    path.write_text(yaml.safe_dump({"schedules": list(entries)}))
    return path


def desired(tmp_path, *entries, spec=SPEC):
    schedules = read_schedules(write(tmp_path / "schedules.yaml", *entries), check_pipeline)
    place = Place("kiwi", "kiwi-pipelines", "s3://kiwi/pipelines")
    return [Desired(one, spec, configuration_of(one), place) for one in schedules]


def reconcile(cluster, wanted):
    changes = differences(wanted, cluster.recurring_runs())
    apply(cluster, changes)
    return [(change.kind, change.name) for change in changes]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{**ENTRY, "cron": "30 2 * * *"}], "has 5 fields, not six"),
        ([{**ENTRY, "cron": "0 61 2 * * *"}], "'61' is no minute"),
        ([{**ENTRY, "cron": "* 30 2 * * *"}], "every few seconds"),
        ([{**ENTRY, "pipeline": "retrian"}], "no pipeline 'retrian'"),
        ([ENTRY, {**ENTRY, "cron": "0 0 5 * * *"}], "'nightly' is there twice"),
        ([{**ENTRY, "name": "Nightly run"}], "is no name"),
        ([{**ENTRY, "corn": "x"}], "corn"),
        ([{key: value for key, value in ENTRY.items() if key != "preset"}], "preset"),
        ([{**ENTRY, "workspace": "work/demo"}], "workspace"),
        (["nightly"], "schedule 1"),
    ],
)
def test_a_faulty_schedule_file_is_refused_with_its_fault(tmp_path, entries, said):
    with pytest.raises(UsageError, match=said):
        read_schedules(write(tmp_path / "schedules.yaml", *entries), check_pipeline)


@pytest.mark.parametrize("text", ["schedules: [", "- x", "schedules: {}", ""])
def test_a_file_that_is_no_list_of_schedules_is_refused(tmp_path, text):
    (tmp_path / "schedules.yaml").write_text(text)
    with pytest.raises(UsageError, match="schedules"):
        read_schedules(tmp_path / "schedules.yaml", check_pipeline)


@pytest.mark.parametrize(
    "line",
    [
        "0 0 0 1 1 0", "0 */15 8-18 ? * mon-fri", "0 5,35 * * jan *", " 0  0 0 * * * ", "0 0 0 29 2 *",
        "0 0 0 31 */2 *", "0 0 0 30-31 2,mar *", "0 0 0 30 2 mon",
    ],
)  # fmt: skip
def test_cron_lines_of_the_server_are_taken(line):
    assert len(check_cron(line).split()) == 6


@pytest.mark.parametrize(
    "line",
    [
        "0 0 24 * * *", "0 0 0 0 * *", "0 0 0 * 13 *", "0 0 0 * * 7", "0 ? * * * *", "0 9-3 * * * *", "0 */0 * * * *",
        "", "@daily", "0 0 0 * * mon-", "0 0 0 30 2 *", "0 0 0 31 4,6,sep,11 ?", "0 0 0 30-31 feb *",
    ],
)  # fmt: skip
def test_cron_lines_that_the_server_would_misread_are_refused(line):
    with pytest.raises(UsageError):
        check_cron(line)


def test_applying_creates_what_is_missing_and_then_finds_nothing_to_do(cluster, fake, tmp_path):
    wanted = desired(tmp_path, ENTRY, {**ENTRY, "name": "weekly", "enabled": False, "catchup": True})
    assert reconcile(cluster, wanted) == [("create", "nightly"), ("create", "weekly")]
    nightly, weekly = fake.recurring.values()
    assert nightly["trigger"]["cron_schedule"]["cron"] == "0 30 2 * * *"
    assert nightly["pipeline_spec"] == SPEC
    assert nightly["runtime_config"]["parameters"]["config"] == wanted[0].configuration.canonical()
    assert (nightly["mode"], nightly["no_catchup"]) == ("ENABLE", True)
    assert (weekly["mode"], weekly["no_catchup"]) == ("DISABLE", False)
    before = len(fake.changes())
    assert reconcile(cluster, wanted) == [("keep", "nightly"), ("keep", "weekly")]
    assert len(fake.changes()) == before, "nothing was changed"


@pytest.mark.parametrize(
    ("change", "spec"), [({"cron": "0 0 3 * * *"}, SPEC), ({"set": {"seed": 5}}, SPEC), ({}, {"pipeline_spec": {}})],
    ids=["cron", "configuration", "pipeline"],
)  # fmt: skip
def test_what_changed_is_stopped_then_made_anew_then_deleted(cluster, fake, tmp_path, change, spec):
    reconcile(cluster, desired(tmp_path, ENTRY))
    (old,) = fake.recurring
    fake.asked.clear()
    assert reconcile(cluster, desired(tmp_path, {**ENTRY, **change}, spec=spec)) == [("replace", "nightly")]
    assert [said.replace(old, "OLD") for said in fake.changes()] == [
        "POST /apis/v2beta1/recurringruns/OLD:disable",
        "POST /apis/v2beta1/recurringruns",
        "DELETE /apis/v2beta1/recurringruns/OLD",
    ]
    assert len(fake.recurring) == 1


def test_what_is_gone_from_the_file_is_removed_and_what_others_made_is_left(cluster, fake, tmp_path):
    reconcile(cluster, desired(tmp_path, ENTRY))
    fake.recurring["theirs"] = {"recurring_run_id": "theirs", "display_name": "backup", "description": "by hand"}
    assert reconcile(cluster, []) == [("remove", "nightly")]
    assert list(fake.recurring) == ["theirs"]


def test_a_name_that_somebody_else_uses_is_refused_before_anything_is_touched(cluster, fake, tmp_path):
    fake.recurring["theirs"] = {"recurring_run_id": "theirs", "display_name": "nightly", "description": "by hand"}
    with pytest.raises(UsageError, match="kiwi did not make"):
        reconcile(cluster, desired(tmp_path, ENTRY))
    assert fake.changes() == []


def test_an_apply_that_broke_off_is_completed_by_the_next(cluster, fake, tmp_path):
    reconcile(cluster, desired(tmp_path, ENTRY))
    wanted = desired(tmp_path, {**ENTRY, "cron": "0 0 3 * * *"})
    changes = differences(wanted, cluster.recurring_runs())

    def delete(identity):
        raise NotAllowed("broken off here")

    cluster.delete_recurring_run, whole = delete, cluster.delete_recurring_run
    with pytest.raises(NotAllowed):
        apply(cluster, changes)
    assert sorted(run["status"] for run in fake.recurring.values()) == ["DISABLED", "ENABLED"], "it fires once"
    cluster.delete_recurring_run = whole
    assert reconcile(cluster, wanted) == [("remove", "nightly")]
    assert [run["status"] for run in fake.recurring.values()] == ["ENABLED"]


def test_a_schedule_that_was_switched_off_by_hand_is_switched_on_again(cluster, fake, tmp_path):
    wanted = desired(tmp_path, ENTRY)
    reconcile(cluster, wanted)
    cluster.disable_recurring_run(next(iter(fake.recurring)))
    assert reconcile(cluster, wanted) == [("replace", "nightly")]
    assert [run["status"] for run in fake.recurring.values()] == ["ENABLED"]


def test_the_fake_refuses_what_the_api_does_not_know(cluster, fake):
    """The fake's schema check works: without it the tests above would prove less."""
    status, said = fake.answer("POST", "/apis/v2beta1/recurringruns", {}, {"display_name": "x", "crom": 1})
    assert status == 400
    assert "crom: unknown field" in said["message"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([ENTRY, {**ENTRY, "name": "weekly", "cron": "0 61 2 * * *"}], "'61' is no minute"),
        ([ENTRY, {**ENTRY, "name": "weekly", "pipeline": "retrian"}], "no pipeline 'retrian'"),
        ([ENTRY, ENTRY], "is there twice"),
        ([ENTRY, {**ENTRY, "name": "weekly", "profile": "prd"}], "no profile 'prd'"),
        ([ENTRY, {**ENTRY, "name": "weekly", "profile": "local"}], "names no namespace"),
        ([ENTRY, {**ENTRY, "name": "weekly", "preset": "huge"}], "huge"),
        ([ENTRY, {**ENTRY, "name": "weekly", "set": {"curation.shrads": 3}}], "shrads"),
        ([{**ENTRY, "image": "x"}], "image"),
    ],
    ids=["cron line", "pipeline", "duplicate", "profile", "no cluster's profile", "preset", "setting", "unknown key"],
)
def test_the_command_refuses_a_faulty_file_before_it_asks_the_cluster_for_anything(
    fake, tmp_path, monkeypatch, entries, said
):
    from typer.testing import CliRunner

    from kiwi.cli import app
    from kiwi.cluster import submitting

    monkeypatch.setattr(submitting, "compiled", lambda *said: SPEC)  # takes seconds, and is none of these faults
    file = write(tmp_path / "schedules.yaml", *entries)
    arguments = ["schedule", "apply", "--file", str(file), "--host", fake.url, "--image", "kiwi:0123456"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UsageError), done.output
    assert said in str(done.exception)
    assert fake.asked == []


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 500])
def test_an_apply_that_the_cluster_refuses_says_so_and_the_next_one_completes_it(cluster, fake, tmp_path, status):
    wanted = desired(tmp_path, ENTRY, {**ENTRY, "name": "weekly"})
    answer, made = fake.answer, []

    def refusing(method, path, *more):
        if method == "POST" and path.endswith("/recurringruns"):
            made.append(path)
            if len(made) > 1:
                return status, {"message": "not now"}
        return answer(method, path, *more)

    fake.answer = refusing
    with pytest.raises(ClusterError) as caught:
        reconcile(cluster, wanted)
    assert (caught.value.status, "not now" in str(caught.value)) == (status, True)
    fake.answer = answer
    assert reconcile(cluster, wanted) == [("keep", "nightly"), ("create", "weekly")]
