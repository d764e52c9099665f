"""A webhook's other side: a real HTTP server on loopback that behaves as it is told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Receiver:
    """What it was sent, and how it answers.

    Attributes:
        answers: status codes in order; the last one stays. 0 gives none for a minute, -1 trickles headers for ever.
    """

    port: int = 0
    answers: list[int] = field(default_factory=lambda: [200])
    headers: dict[str, str] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/T000/B000/hook-secret-part"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [call["body"] for call in self.calls]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said = dict(self.headers.items())
            state.calls.append({"path": self.path, "headers": said, "body": json.loads(text or b"{}")})
            self._answer()

        def do_PUT(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            state.calls.append({"path": self.path, "headers": dict(self.headers.items()), "body": text})
            self._answer()

        def _answer(self) -> None:
            status = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            if status == 0:
                state.closing.wait(60)
                return
            if status == -1:
                while not state.closing.is_set():
                    self.wfile.write(b"X")
                    time.sleep(0.05)
            self.send_response(status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *said: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    state.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield state
    state.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/hook-secret-part"


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "KIWI_ALERT_URL",
        "KIWI_ALERT_FORMAT",
        "KIWI_ALERT_TOKEN",
        "KIWI_PUSHGATEWAY_URL",
        "KIWI_METRICS_FOLDER",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("KIWI_LOG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
