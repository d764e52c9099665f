"""One HTTP exchange with a model server, and what its outcome means: an answer, a refusal of this request, a reason to
try again later, or a server that cannot be used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import aiohttp

from kiwi.services.endpoint import Endpoint
from kiwi.services.errors import ServiceError
from kiwi.services.patience import is_later
from kiwi.services.replies import excerpt

MAX_REPLY = 4 * 1024**2  # bytes; no answer that max_tokens allows is near it
REFUSALS = (400, 413, 422)
CONNECT_SECONDS = 10.0
AT_ONCE = 256 * 1024  # bytes written before others have their turn


T = TypeVar("T")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What came with status 200: a body, or what was read from it."""

    value: T


@dataclass(frozen=True)
class Refusal:
    """The server does not take this very request; another one may be fine."""

    detail: str


@dataclass(frozen=True)
class Later:
    """Nothing came of it this time. `unreachable`: nobody listens there at all."""

    detail: str
    retry_after: str | None = None
    unreachable: bool = False


class OverlongError(ValueError):
    """A body over MAX_REPLY."""


class Connection:
    """A pool of connections to one server, on the running event loop. Proxies are used as the environment says, but
    never for this machine."""

    def __init__(self, endpoint: Endpoint, connections: int, timeout: float) -> None:
        self._endpoint = endpoint
        headers = {"Authorization": endpoint.authorization} if endpoint.authorization else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, CONNECT_SECONDS)),
            trust_env=not endpoint.loopback,
        )

    async def close(self) -> None:
        await self._session.close()

    async def exchange(self, method: str, path: str, body: Sequence[bytes] = ()) -> Answer[bytes] | Refusal | Later:
        """One request, its body in pieces. Raises ServiceError where no request to this server can succeed."""
        length = sum(len(piece) for piece in body)
        headers = {"Content-Type": "application/json", "Content-Length": str(length)} if body else None
        data = None if not body else b"".join(body) if length <= AT_ONCE else _in_runs(body)
        url = f"{self._endpoint.shown}/{path}"
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, allow_redirects=False
            ) as response:
                said = await _bounded(response)
                if response.status == 200:
                    return Answer(said)
                return self._declined(response.status, said, response.headers.get("Retry-After"))
        except OverlongError as error:
            return Later(str(error))
        except aiohttp.ClientConnectorError as error:
            return Later(self._clean(f"no connection ({error.os_error.strerror or error.os_error})"), unreachable=True)
        except TimeoutError:
            return Later("no answer in time")
        except aiohttp.InvalidURL as error:
            raise self.broken("the address is none", f"set {self._endpoint.variable}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Later(self._clean(f"the connection broke ({type(error).__name__}: {error})"))

    def broken(self, said: str, remedy: str) -> ServiceError:
        """The error of a server that cannot be used: its address without secrets, and what to do."""
        return ServiceError(self._clean(f"model server {self._endpoint.shown}: {said}"), remedy)

    def _declined(self, status: int, data: bytes, retry_after: str | None) -> Refusal | Later:
        said = self._clean(f"{status}: {_message(data)}")
        if is_later(status):
            return Later(said, retry_after)
        if status in REFUSALS:
            return Refusal(said)
        variable = self._endpoint.variable
        if status in (401, 403):
            raise self.broken(said, f"set {variable.replace('BASE_URL', 'API_KEY')} to a key that it accepts")
        raise self.broken(said, f"check {variable}: is it the address that ends in /v1, and is the model served?")

    def _clean(self, said: str) -> str:
        return self._endpoint.without_secrets(said)


async def _in_runs(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    """The pieces joined to runs of about AT_ONCE bytes: a body of many pictures is never in memory twice."""
    run: list[bytes] = []
    for piece in pieces:
        run.append(piece)
        if sum(map(len, run)) >= AT_ONCE:
            yield b"".join(run)
            run = []
    yield b"".join(run)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body. Raises OverlongError as soon as it is longer than any answer is."""
    data = bytearray()
    async for piece in response.content.iter_chunked(65_536):
        data += piece
        if len(data) > MAX_REPLY:
            raise OverlongError(f"a body of more than {MAX_REPLY} bytes")
    return bytes(data)


def _message(data: bytes) -> str:
    """What a server says of an error: OpenAI's and vLLM's formats, else the body's beginning."""
    try:
        said: Any = json.loads(data)
    except (ValueError, RecursionError):
        return excerpt(data.decode("utf-8", "replace"))
    if isinstance(said, dict):
        error = said.get("error", said)
        said = error.get("message", said) if isinstance(error, dict) else error
    return excerpt(said if isinstance(said, str) else json.dumps(said))
