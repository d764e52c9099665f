"""What a service answers to one GET: its status, or in words why there is none, and never an address."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SECONDS = 5.0
LONGEST = 100_000


@dataclass(frozen=True)
class Answer:
    """`status` is 0 where nobody answered; `said` is for a sentence that begins with the service's name."""

    status: int
    text: str
    said: str

    def json(self) -> dict[str, Any]:
        """The body as an object; empty where it is none."""
        try:
            found = json.loads(self.text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def get(
    url: str,
    token: str = "",  # nosec B107 - no password, but that there is none
    login: tuple[str, str] | None = None,
    *,
    authorization: str = "",
    verify: str | bool = True,
    certificate: tuple[str, str] | None = None,
) -> Answer:
    """One GET, redirects not followed. `verify` may name a file of authorities."""
    import requests  # type: ignore[import-untyped,unused-ignore]

    said = authorization or (f"Bearer {token}" if token else "")
    headers = {"Authorization": said} if said else {}
    try:
        with requests.get(
            url, headers=headers, auth=login, timeout=SECONDS, allow_redirects=False, stream=True, verify=verify,
            cert=certificate,
        ) as answer:  # fmt: skip
            body = answer.raw.read(LONGEST, decode_content=True).decode("utf-8", "replace")
            return Answer(answer.status_code, body, f"answers {answer.status_code}")
    except requests.Timeout:
        return Answer(0, "", f"gives no answer within {SECONDS:g} s")
    except requests.exceptions.SSLError:
        return Answer(0, "", "shows a certificate that we do not trust")
    except (requests.RequestException, OSError) as error:
        return Answer(0, "", f"takes no connection ({type(error).__name__})")


def address_problem(url: str) -> str:
    """What is wrong with an http(s) address, without showing it; "" where nothing is."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    return "" if usable else "is no http:// or https:// address"
