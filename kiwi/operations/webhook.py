"""One POST to the address in KIWI_ALERT_URL: retried, bounded in time, and the address never shown.

A webhook's address is its password, so nothing here puts it into a message: of an address one sees the host alone.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from kiwi.errors import KiwiError, UsageError
from kiwi.operations.deadline import within

ADDRESS, FORMAT, TOKEN = "KIWI_ALERT_URL", "KIWI_ALERT_FORMAT", "KIWI_ALERT_TOKEN"
SLACK_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")
ATTEMPTS = 4
ANSWER_SECONDS = 5.0
WHOLE_SECONDS = 25.0
LONGEST_PAUSE = 8.0

Format = Literal["slack", "json"]


class AlertError(KiwiError):
    """An alert was not taken. Never a reason for a run to fail."""


class _PassingError(AlertError):
    """A refusal that may pass; `pause` is what the server asked for, in seconds."""

    pause: float | None = None


@dataclass(frozen=True)
class Webhook:
    """Where alerts go."""

    url: str = field(repr=False)
    format: Format = "json"
    token: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """The address without its path, which is the secret of a webhook."""
        return f"the alert webhook at {urlsplit(self.url).hostname}"

    @classmethod
    def told(cls) -> Webhook | None:
        """The webhook of the environment; None where there is none.

        Raises UsageError for an address that is no http(s), and for an unknown format.
        """
        url = os.environ.get(ADDRESS, "").strip()
        if not url:
            return None
        try:
            parts = urlsplit(url)
            host = parts.hostname if parts.scheme in ("http", "https") and (parts.port or 1) > 0 else None
        except ValueError:
            host = None
        if not host:  # the value is not shown: it may be a secret in the wrong shape
            raise UsageError(
                f"{ADDRESS} is no http:// or https:// address", "such as https://hooks.slack.com/services/…"
            )
        return cls(url, _format(host), os.environ.get(TOKEN, "").strip())


def _format(host: str) -> Format:
    said = os.environ.get(FORMAT, "").strip().lower()
    if said not in ("", "slack", "json"):
        raise UsageError(f"{FORMAT}={said!r} is no format", "slack or json")
    return "slack" if said == "slack" or (not said and host in SLACK_HOSTS) else "json"


def post(webhook: Webhook, body: dict[str, Any], key: str, seconds: float = WHOLE_SECONDS) -> None:
    """Sends `body`; `key` is the same for the same event, so that a receiver can drop a repetition.

    Tries up to four times where silence, 429 or a fault answers, and ends after `seconds` whatever the other side does.
    Raises AlertError.
    """
    try:
        within(seconds, lambda: _patiently(webhook, body, key, seconds))
    except TimeoutError:
        raise AlertError(f"{webhook.shown} did not take the alert within {seconds:g} s", "is the service up?") from None


def _patiently(webhook: Webhook, body: dict[str, Any], key: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _once(webhook, body, key)
            return
        except _PassingError as error:
            pause = min(LONGEST_PAUSE, error.pause if error.pause is not None else 0.5 * 2 ** (attempt - 1))
            if attempt == ATTEMPTS or time.monotonic() + pause >= until:
                raise
        time.sleep(pause)


def _once(webhook: Webhook, body: dict[str, Any], key: str) -> None:
    import requests  # type: ignore[import-untyped,unused-ignore]

    headers = {"Idempotency-Key": key, "User-Agent": "kiwi"}
    if webhook.token:
        headers["Authorization"] = f"Bearer {webhook.token}"
    try:
        # Not followed elsewhere: the body and the token are meant for this host. The answer's body is not read.
        with requests.post(
            webhook.url, json=body, headers=headers, timeout=ANSWER_SECONDS, allow_redirects=False, stream=True
        ) as answer:
            status, pause = answer.status_code, answer.headers.get("Retry-After", "")
    except requests.Timeout:
        raise _PassingError(
            f"{webhook.shown} gave no answer within {ANSWER_SECONDS:g} s", "is the service up?"
        ) from None
    except requests.ConnectionError:
        raise _PassingError(f"{webhook.shown} takes no connection", "is it up, and may this pod reach it?") from None
    except requests.RequestException as error:  # its text holds the address
        raise AlertError(f"{webhook.shown}: {type(error).__name__}", f"mend {ADDRESS}") from None
    if status == 429 or status >= 500:
        again = _PassingError(f"{webhook.shown} answers {status}", "look at the receiving service")
        again.pause = float(pause) if pause.isdigit() else None
        raise again
    if 300 <= status < 400:
        raise AlertError(f"{webhook.shown} answers {status}: it has moved", f"set {ADDRESS} to the new address")
    if status >= 400:
        raise AlertError(
            f"{webhook.shown} refuses the alert ({status})", f"is {ADDRESS} still valid, and {FORMAT} right?"
        )
