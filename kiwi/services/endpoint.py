"""Where a model server is and how to log in to it: from the environment, since neither is part of what is computed."""

from __future__ import annotations

import base64
import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from kiwi.errors import UsageError

PREFIX = "KIWI_VLM"


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible address such as http://host:8000/v1, and the key that opens it.

    Attributes:
        variable: the environment variable that named the address, for messages.
    """

    base_url: str = field(repr=False)
    key: str = field(default="", repr=False)
    variable: str = f"{PREFIX}_BASE_URL"

    @property
    def shown(self) -> str:
        """The address without whatever secrets it holds: no user, no password, no query."""
        parts = urlsplit(self.base_url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"

    @property
    def authorization(self) -> str:
        """The header's value: the key, else the user and password that stand in the address; "" for neither."""
        parts = urlsplit(self.base_url)
        if self.key or parts.username is None:
            return f"Bearer {self.key}" if self.key else ""
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    @property
    def loopback(self) -> bool:
        """Whether it is this machine, where a proxy would be in the way."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def without_secrets(self, said: str) -> str:
        """`said` with the key, and a password in the address, blacked out."""
        password = urlsplit(self.base_url).password or ""
        for secret in (self.key, password):
            said = said.replace(secret, "***") if secret else said
        return said


def endpoint_of(purpose: str = "") -> Endpoint:
    """KIWI_VLM_BASE_URL with KIWI_VLM_API_KEY; for a purpose ("score", "ground", "verify", "judge") that has an
    address of its own, KIWI_VLM_SCORE_BASE_URL with KIWI_VLM_SCORE_API_KEY.

    The common key is never sent to a purpose's own address. Raises UsageError where no usable address is set.
    """
    own = f"{PREFIX}_{purpose.upper()}" if purpose else PREFIX
    prefix = own if os.environ.get(f"{own}_BASE_URL") else PREFIX
    variable = f"{prefix}_BASE_URL"
    address = os.environ.get(variable, "").strip().rstrip("/")
    if not address:
        raise UsageError(
            f"{variable} is not set: where is the server of the vision-language model?",
            f"export {variable}=http://HOST:PORT/v1 (and {prefix}_API_KEY where it asks for one)",
        )
    endpoint = Endpoint(address, os.environ.get(f"{prefix}_API_KEY", "").strip(), variable)
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:  # the value itself is not shown: it may hold a password
        raise UsageError(f"{variable} is no http:// or https:// address", "such as http://HOST:8000/v1")
    if any(ord(letter) < 33 or ord(letter) > 126 for letter in endpoint.key):
        raise UsageError(f"{prefix}_API_KEY holds a blank or a character that no header takes", "copy the key again")
    return endpoint
