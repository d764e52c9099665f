"""A model server that answers everything with one reply after a fixed delay: what a client could reach at best."""

from __future__ import annotations

import asyncio
from multiprocessing.synchronize import Event
from typing import Any


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
    ready.set()
    web.run_app(app, host="127.0.0.1", port=port, print=None)
