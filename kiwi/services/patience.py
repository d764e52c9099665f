"""How long a request is tried: which answers mean "later", and how long "later" is."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from kiwi.configuration import ServiceSettings

LATER = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Patience:
    """Bounds on asking.

    Attributes:
        concurrency: requests under way at once.
        timeout: seconds for one request.
        attempts: tries of one request.
        first_wait: seconds before the second try; each wait after it is twice as long.
        longest_wait: seconds; a server that asks for more than this is given up at once.
    """

    concurrency: int = 64
    timeout: float = 120.0
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 300.0

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> Patience:
        return cls(settings.concurrency, settings.timeout, settings.attempts)

    def wait(self, attempt: int, retry_after: str | None = None) -> float | None:
        """Seconds before the try after `attempt` (counted from 1): what the server asks for, else twice as long each
        time, spread so that requests that failed together do not come back together. None: not worth waiting."""
        if attempt >= self.attempts:
            return None
        asked = seconds_of(retry_after) if retry_after else None
        if asked is not None:
            return asked if asked <= self.longest_wait else None
        return min(self.first_wait * 2.0 ** (attempt - 1), self.longest_wait) * random.uniform(0.75, 1.25)


def is_later(status: int) -> bool:
    """Whether an HTTP status says that the same request may succeed later."""
    return status in LATER or status >= 500


def seconds_of(retry_after: str) -> float | None:
    """A Retry-After header, seconds or a date, as seconds from now; None where it is neither."""
    said = retry_after.strip()
    if said.isdecimal() and said.isascii():
        return float(said[:9])
    try:
        at = parsedate_to_datetime(said)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
