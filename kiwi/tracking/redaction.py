"""Takes secrets out of text that is about to be kept or shown: the environment's, and what looks like a login."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

SECRET_NAME = re.compile(
    r"PASSWORD|PASSWD|SECRET|TOKEN(?!IZERS)|API_KEY|COOKIE|CREDENTIAL|PRIVATE_KEY|ACCESS_KEY(?!_ID)|KIWI_ALERT_URL"
)
NO_SECRET = re.compile(r"_(FILE|PATH)$|PARALLELISM$")
ADDRESS_NAME = re.compile(r"(URL|URI|DSN|ENDPOINT|PROXY|REMOTE)S?(_[A-Z0-9]+)?$", re.IGNORECASE)
SHORTEST = 6
"""A shorter value would black out ordinary words, and protects nothing."""

LOOKS_SECRET = (
    (re.compile(r"(://[^/\s:@]*):[^/\s@]+@"), r"\1:***@"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), "hf_***"),
    (re.compile(r"(hooks\.slack\.com/(?:services|workflows|triggers)/)[\w/-]+"), r"\1***"),
    (re.compile(r"\b(X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token)=[^&\s\"']+"), r"\1=***"),
)


def secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The secret values that the environment holds, the longest first; passwords inside addresses are among them."""
    said = os.environ if environment is None else environment
    return _secrets(tuple(sorted((name, value) for name, value in said.items() if _may_hold(name, value))))


def _may_hold(name: str, value: str) -> bool:
    return bool(SECRET_NAME.search(name.upper())) or (bool(ADDRESS_NAME.search(name)) and "@" in value)


@lru_cache(maxsize=8)
def _secrets(named: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found = {value for name, said in named for value in _values(name.upper(), said.strip()) if len(value) >= SHORTEST}
    return tuple(sorted(found, key=len, reverse=True))


def _values(name: str, said: str) -> Iterator[str]:
    if SECRET_NAME.search(name) and not NO_SECRET.search(name):
        yield said
    if "://" in said:
        try:
            password = urlsplit(said).password or ""
        except ValueError:
            return
        yield from (password, unquote(password))


def redact(text: str) -> str:
    """`text` with every secret blacked out."""
    return _blacked_out(text, secrets())


def redacted(value: Any) -> Any:
    """A value of JSON's kinds, every text in it redacted, keys too; others are shown as text."""
    return _redacted(value, secrets())


def _redacted(value: Any, known: tuple[str, ...]) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_blacked_out(str(key), known): _redacted(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(item, known) for item in value]
    return _blacked_out(str(value), known)


def _blacked_out(text: str, known: tuple[str, ...]) -> str:
    for secret in known:
        text = text.replace(secret, "***")
    for pattern, shown in LOOKS_SECRET:
        text = pattern.sub(shown, text)
    return text
