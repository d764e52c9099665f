"""A model server that answers everything with one reply after a fixed delay: what a client could reach at best."""

from __future__ import annotations

import asyncio
import gc
import socket
from multiprocessing.synchronize import Event
from typing import Any

RECEIVE_BUFFER = 4 * 1024**2  # bytes


def serve(reply: str, port: int, delay: Any, ready: Event, most: Any) -> None:
    """The server's process, on loopback.

    Args:
        reply: the message of every completion.
        delay: a shared value, seconds. most: a shared value, set to the most requests that were there at once.
    """
    from aiohttp import web

    at_once = 0
    said = {"choices": [{"message": {"content": reply}, "finish_reason": "stop"}]}

    async def answer(request: web.Request) -> web.Response:
        nonlocal at_once
        at_once += 1
        most.value = max(most.value, at_once)
        await request.read()
        await asyncio.sleep(delay.value)
        at_once -= 1
        return web.json_response(said)

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fixed"}]})

    app = web.Application(client_max_size=2**28)
    app.add_routes([web.post("/v1/chat/completions", answer), web.get("/v1/models", models)])
    gc.freeze()  # a full collection over the imports would be a delay of its own
    ready.set()
    web.run_app(app, sock=_listening(port), print=None)


def _listening(port: int) -> socket.socket:
    """A socket whose connections have room for a body from the start.

    Loopback's packets are as large as the window of a new connection. Where the server is not quick enough to read the
    first one, the second may wait for a probe, a fifth of a second, which is no delay of the client's nor of a network
    with packets of 1,500 bytes.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    listening.bind(("127.0.0.1", port))
    return listening
