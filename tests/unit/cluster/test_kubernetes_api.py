"""Refusals of the Kubernetes API become typed errors with a remedy; patience where asking twice does no harm."""

from __future__ import annotations

import pytest

from kiwi.cluster import kubernetes as api
from kiwi.cluster.kubernetes import Kubernetes

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kiwi/trainjobs"


@pytest.mark.parametrize(
    ("status", "kind", "remedy"),
    [
        (401, api.NotAuthenticated, "service_account"),
        (403, api.NotAllowed, "service_account"),
        (404, api.NotFound, "operator installed"),
        (409, api.Conflict, "try again"),
        (422, api.KubernetesError, "its words"),
        (429, api.Busy, "try again in a minute"),
        (500, api.ServerFault, "try again later"),
        (503, api.ServerFault, "try again later"),
    ],
)
def test_each_refusal_has_its_type_its_words_and_its_remedy(kubernetes, fake_kubernetes, status, kind, remedy):
    fake_kubernetes.refuse = [status] * kubernetes.attempts
    with pytest.raises(kind) as caught:
        kubernetes.create(JOBS, {})
    assert caught.value.status == status
    assert f"told to answer {status}" in caught.value.message
    assert JOBS in caught.value.message
    assert remedy in caught.value.remedy
    assert "the-token" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_or_failing_is_asked_again(kubernetes, fake_kubernetes, status):
    fake_kubernetes.refuse = [status] * (kubernetes.attempts - 1)
    assert kubernetes.get(JOBS) == {"items": []}
    assert len(fake_kubernetes.asked) == kubernetes.attempts


@pytest.mark.parametrize("status", [401, 403, 404, 409])
def test_a_refusal_that_asking_again_does_not_change_is_asked_once(kubernetes, fake_kubernetes, status):
    fake_kubernetes.refuse = [status] * 9
    with pytest.raises(api.KubernetesError):
        kubernetes.get(JOBS)
    assert len(fake_kubernetes.asked) == 1


def test_silence_is_an_api_that_does_not_answer():
    nobody = Kubernetes("http://127.0.0.1:9", "kiwi", pause=lambda seconds: None)
    with pytest.raises(api.KubernetesUnavailable, match="does not answer") as caught:
        nobody.find("/x")
    assert caught.value.status == 0


def test_a_token_that_was_exchanged_meanwhile_is_read_anew(fake_kubernetes, tmp_path):
    file = tmp_path / "token"
    client = Kubernetes(fake_kubernetes.url, "kiwi", token_file=file)
    for token in ("first", "second"):
        file.write_text(token)
        client.get(JOBS)
    assert fake_kubernetes.tokens == ["Bearer first", "Bearer second"]


def test_an_object_that_is_gone_or_another_meanwhile_is_not_deleted_and_no_error(kubernetes, fake_kubernetes):
    kubernetes.delete(f"{JOBS}/x", "uid-1")
    fake_kubernetes.jobs["x"] = {"metadata": {"name": "x", "uid": "uid-2"}}
    kubernetes.delete(f"{JOBS}/x", "uid-1")
    assert "x" in fake_kubernetes.jobs
