"""Delivery of an alert to a real server that is slow, faulty, away, moved, or fine: bounded, retried, never shown."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kiwi.errors import UsageError
from kiwi.operations import webhook
from kiwi.operations.webhook import AlertError, Webhook, post

SECRET = "hook-secret-part"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(webhook, "ANSWER_SECONDS", 0.3)


def refused(url: str, seconds: float = 5.0) -> AlertError:
    with pytest.raises(AlertError) as caught:
        post(Webhook(url), {"text": "hello"}, "key", seconds)
    assert SECRET not in f"{caught.value}{caught.value!r}", "a webhook's address is its password"
    return caught.value


def test_a_fault_that_passes_is_tried_again_with_the_same_key(receiver: Any) -> None:
    receiver.answers = [500, 429, 200]
    post(Webhook(receiver.url, token="a-token-of-ours"), {"text": "hello"}, "key-1")
    assert receiver.bodies == [{"text": "hello"}] * 3
    assert {call["headers"]["Idempotency-Key"] for call in receiver.calls} == {"key-1"}
    assert receiver.calls[0]["headers"]["Authorization"] == "Bearer a-token-of-ours"


def test_a_fault_that_stays_is_given_up_after_four_tries(receiver: Any) -> None:
    receiver.answers = [503]
    assert "503" in refused(receiver.url).message
    assert len(receiver.calls) == webhook.ATTEMPTS


def test_a_refusal_is_not_tried_again(receiver: Any) -> None:
    receiver.answers = [403]
    assert "refuses the alert (403)" in refused(receiver.url).message
    assert len(receiver.calls) == 1


def test_a_redirect_is_not_followed(receiver: Any) -> None:
    receiver.answers, receiver.headers = [307], {"Location": receiver.url + "/elsewhere"}
    error = refused(receiver.url)
    assert "it has moved" in error.message
    assert "elsewhere" not in str(error)
    assert len(receiver.calls) == 1


def test_nobody_there_is_told(nobody: str) -> None:
    assert "takes no connection" in refused(nobody).message


def test_a_server_that_never_answers_is_told(receiver: Any) -> None:
    receiver.answers = [0]
    assert "no answer within" in refused(receiver.url).message
    assert len(receiver.calls) == webhook.ATTEMPTS


def test_a_server_that_keeps_talking_does_not_hold_the_run(receiver: Any) -> None:
    """A byte now and then resets every timeout of a socket: only a clock of our own ends this one."""
    receiver.answers = [-1]
    began = time.monotonic()
    assert "did not take the alert within 1 s" in refused(receiver.url, seconds=1.0).message
    assert time.monotonic() - began < 30


def test_a_server_that_asks_for_a_long_pause_is_not_waited_for(receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "LONGEST_PAUSE", 3600.0)
    receiver.answers, receiver.headers = [429], {"Retry-After": "3600"}
    assert "429" in refused(receiver.url).message
    assert len(receiver.calls) == 1


@pytest.mark.parametrize(
    "said", ["hooks.slack.com/services/x-secret-x", "ftp://host/x-secret-x", "http://[::1/x-secret-x"]
)
def test_an_address_that_is_none_is_refused_without_being_shown(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", said)
    with pytest.raises(UsageError) as caught:
        Webhook.told()
    assert "x-secret-x" not in str(caught.value)


def test_the_format_follows_the_host_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(url: str, form: str = "") -> str | None:
        monkeypatch.setenv("KIWI_ALERT_URL", url)
        monkeypatch.setenv("KIWI_ALERT_FORMAT", form)
        found = Webhook.told()
        return found and found.format

    assert told("https://hooks.slack.com/services/T/B/x") == "slack"
    assert told("https://alerts.example/x") == "json"
    assert told("https://chat.example/x", "slack") == "slack"
    assert told("") is None
    with pytest.raises(UsageError, match="no format"):
        told("https://alerts.example/x", "teams")
