"""A FAKE model server: real HTTP on this machine, its replies written by the test.

It stands for an OpenAI-compatible server because what matters here (429, a broken connection, an endless reply, a
wrong scale) cannot be had from a real one on demand. tests/integration asks a real one.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted"


@dataclass(frozen=True)
class Said:
    """One HTTP answer. `drop`: send half the body, then break the connection."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    drop: bool = False


def chat(*texts: str, finish: str = "stop", **http: Any) -> Said:
    """A chat completion with an answer for each text."""
    choices = [{"index": n, "message": {"content": text}, "finish_reason": finish} for n, text in enumerate(texts)]
    usage = {"prompt_tokens": 100, "completion_tokens": 10 * len(texts), "total_tokens": 0}
    return Said(json.dumps({"choices": choices, "usage": usage}).encode(), **http)


def error(status: int, message: str = "no", **headers: str) -> Said:
    said = json.dumps({"error": {"message": message}}).encode()
    return Said(said, status, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class ScriptedServer:
    """`script` gets each request's body and says what to answer; `seen` holds bodies, in the order of arrival."""

    script: Callable[[dict[str, Any]], Said]
    models: Said | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    listed: int = 0
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


def question_of(body: dict[str, Any]) -> str:
    """The texts of a request's user message."""
    return " ".join(part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text")


def pictures_of(body: dict[str, Any]) -> list[bytes]:
    import base64

    parts = [part for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    return [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in parts]


@contextmanager
def serving(script: Callable[[dict[str, Any]], Said], models: Said | None = None) -> Iterator[ScriptedServer]:
    """The server at work; `models`: its answer to GET /models (default: it serves MODEL)."""
    server = ScriptedServer(script, models)
    http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"scripted": server}))
    server.address = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    scripted: ScriptedServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        listing = json.dumps({"object": "list", "data": [{"id": MODEL}, {"id": "another"}]}).encode()
        self.scripted.listed += 1
        self._send(self.scripted.models or Said(listing))

    def do_POST(self) -> None:
        server = self.scripted
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append(body)
            server.keys.append(self.headers.get("Authorization", ""))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        said = server.script(body)
        time.sleep(said.seconds)
        with server.lock:
            server.at_once -= 1
        self._send(said)

    def _send(self, said: Said) -> None:
        self.send_response(said.status)
        for name, value in said.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(said.body)))
        self.end_headers()
        if said.drop:
            self.wfile.write(said.body[: len(said.body) // 2])
            self.close_connection = True
            return
        self.wfile.write(said.body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""
