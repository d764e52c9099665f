"""What proves that a link, a cookie or a vote comes from this study: HMACs under a key that only the server knows."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from kiwi.errors import KiwiError, UsageError

SHORTEST_TOKEN = 12


@dataclass(frozen=True)
class Signer:
    """Signs and checks short texts. `token` is what others need to come in; its change makes all old links void."""

    key: bytes
    token: str

    def digest(self, purpose: str, *parts: str) -> bytes:
        """32 bytes that nobody without the key can foretell; `purpose` keeps one use from passing for another."""
        return hmac.new(self.key, json.dumps([purpose, *parts]).encode(), hashlib.sha256).digest()

    def sign(self, purpose: str, *parts: str) -> str:
        return self.digest(purpose, *parts).hex()[:40]

    def signed(self, purpose: str, *parts: str, signature: str) -> bool:
        """Whether `signature` is that of the parts; takes the same time whatever it holds."""
        return hmac.compare_digest(self.sign(purpose, *parts).encode(), signature.encode())

    def admits(self, token: str) -> bool:
        return hmac.compare_digest(self.token.encode(), token.encode())

    def number(self, purpose: str, *parts: str) -> int:
        """A number that looks random to raters and is the same each time: orders, sides, places of checks."""
        return int.from_bytes(self.digest(purpose, *parts)[:8], "big")


def signer_of(folder: Path, token: str | None = None) -> Signer:
    """The signer of a study's folder; its secret, and a token where none is given, are made once and kept there.

    Raises:
        UsageError: a token that could be guessed, or that an address cannot hold.
        KiwiError: the kept secret is damaged.
    """
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UsageError(
            f"a token of {len(token)} characters can be guessed", f"give {SHORTEST_TOKEN} or more, or leave --token out"
        )
    if token is not None and not (token.isascii() and token.replace("-", "").replace("_", "").isalnum()):
        raise UsageError("the token holds signs that an address cannot hold", "use letters, digits, - and _")
    path = folder / "secret.json"
    if not path.exists():
        _keep(path, json.dumps({"secret": secrets.token_hex(32), "token": secrets.token_urlsafe(18)}))
    try:
        kept = json.loads(path.read_text())
        secret, own = bytes.fromhex(kept["secret"]), str(kept["token"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KiwiError(
            f"the study's secret is unreadable: {path} ({type(error).__name__})",
            "delete it: a new one is made, the votes stay, and raters need new links",
        ) from error
    token = token or own
    return Signer(hmac.new(secret, token.encode(), hashlib.sha256).digest(), token)


def _keep(path: Path, text: str) -> None:
    """Writes a file that only its owner can read; whoever came first wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    try:
        with contextlib.suppress(FileExistsError):  # another process came first: its file stands
            os.link(temporary, path)
    finally:
        temporary.unlink()
