"""Refusals of the pipelines server become typed errors with a remedy; patience only where asking twice does no harm."""

from __future__ import annotations

import pytest

from kiwi.cluster import api
from kiwi.cluster.submitting import Place, submit
from kiwi.errors import UsageError


@pytest.mark.parametrize(
    ("status", "kind", "remedy"),
    [
        (401, api.NotAuthenticated, "KIWI_KFP_TOKEN"),
        (403, api.NotAllowed, "kiwi-operator"),
        (404, api.NotFound, "KIWI_KFP_HOST"),
        (409, api.Conflict, "give the command again"),
        (429, api.Busy, "wait a minute"),
        (500, api.ServerFault, "ml-pipeline"),
        (503, api.ServerFault, "ml-pipeline"),
    ],
)
def test_each_refusal_has_its_type_its_words_and_its_remedy(cluster, fake, status, kind, remedy):
    fake.refuse = [status] * api.ATTEMPTS
    with pytest.raises(kind) as caught:
        cluster.recurring_runs()
    assert caught.value.status == status
    assert f"told to answer {status}" in caught.value.message
    assert remedy in caught.value.remedy
    assert "the-token" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_listing_is_asked_again_until_the_server_answers(cluster, fake, status):
    fake.refuse = [status] * (api.ATTEMPTS - 1)
    assert cluster.recurring_runs() == []
    assert len(fake.asked) == api.ATTEMPTS


def test_a_run_is_not_started_twice_when_the_server_fails_in_between(cluster, fake, configuration):
    cluster.experiment(configuration.experiment)
    fake.asked.clear()
    answer, tries = fake.answer, []

    def failing(method, path, *more):
        if method == "GET":
            return answer(method, path, *more)
        tries.append(path)
        return 500, {}

    fake.answer = failing
    with pytest.raises(api.ServerFault):
        submit(cluster, "demo", {}, Place("kiwi", None, None), configuration)
    assert tries == ["/apis/v2beta1/runs"]


def test_a_submitted_run_carries_specification_configuration_and_account(cluster, fake, configuration):
    spec = {"pipeline_spec": {"root": {}}, "platform_spec": {"platforms": {}}}
    place = Place("kiwi", "kiwi-pipelines", "s3://kiwi/pipelines")
    submit(cluster, "demo", spec, place, configuration)
    (run,) = fake.runs.values()
    assert run["pipeline_spec"] == spec
    assert run["runtime_config"] == {
        "parameters": {"config": configuration.canonical()}, "pipeline_root": "s3://kiwi/pipelines"
    }  # fmt: skip
    assert run["service_account"] == "kiwi-pipelines"
    assert fake.experiments[run["experiment_id"]]["display_name"] == configuration.experiment
    assert fake.headers[-1]["Authorization"] == "Bearer the-token"


def test_an_experiment_is_found_on_a_later_page_and_not_made_twice(cluster, fake):
    for number in range(api.PAGE + 5):
        fake.experiments[f"e{number}"] = {"experiment_id": f"e{number}", "display_name": f"name-{number}"}
    assert cluster.experiment(f"name-{api.PAGE + 3}") == f"e{api.PAGE + 3}"
    assert fake.changes() == []


def test_of_two_who_make_the_same_experiment_at_once_both_get_it(cluster, fake, configuration):
    answer = fake.answer

    def too_late(method, path, *more):
        """The server's answer to the second of two creations that crossed."""
        if method == "POST" and path.endswith("/experiments"):
            fake.experiments["theirs"] = {"experiment_id": "theirs", "display_name": configuration.experiment}
            return 409, {"message": "already exists"}
        return answer(method, path, *more)

    fake.answer = too_late
    assert cluster.experiment(configuration.experiment) == "theirs"
    fake.experiments.clear()
    fake.answer = lambda method, path, *more: (409, {}) if method == "POST" else answer(method, path, *more)
    with pytest.raises(api.Conflict):
        cluster.experiment(configuration.experiment)


def test_silence_is_a_server_that_does_not_answer():
    nobody = api.Cluster(api.Address("http://127.0.0.1:9"), "kiwi", pause=lambda seconds: None)
    with pytest.raises(api.ClusterUnavailable, match="does not answer"):
        nobody.recurring_runs()


@pytest.mark.parametrize("host", [None, "", "pipelines", "ftp://x", "http://user:secret@host"])
def test_an_address_that_is_none_is_refused_without_showing_it(monkeypatch, host):
    monkeypatch.delenv("KIWI_KFP_HOST", raising=False)
    with pytest.raises(UsageError) as caught:
        api.Address.told(host)
    assert "secret" not in str(caught.value)


def test_a_token_file_that_cannot_be_read_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("KIWI_KFP_TOKEN", raising=False)
    monkeypatch.setenv("KIWI_KFP_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="none"):
        api.Address.told("http://host")
