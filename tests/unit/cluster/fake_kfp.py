"""A fake of KFP's API server (REST v2beta1), since no cluster can be had here. It is kept thin.

It holds recurring runs, runs and experiments in memory under the server's own paths. Each body is checked against the
models of kfp-server-api, which are generated from the server's own specification: unknown fields, wrong types and
unknown values of enumerations are answered with 400, as the server does. What it cannot show: authorisation, the
workflow controller, anything that runs.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api

RECURRING = "/apis/v2beta1/recurringruns"
RUNS = "/apis/v2beta1/runs"
EXPERIMENTS = "/apis/v2beta1/experiments"
SCALARS = {"str": str, "int": int, "bool": bool, "datetime": str, "float": (int, float)}


def faults(value: Any, kind: str, where: str = "") -> list[str]:
    """How a value departs from a type of the generated client, such as `list[V2beta1RuntimeStatus]`."""
    if value is None or kind == "object":
        return []
    if kind in SCALARS:
        return [] if isinstance(value, SCALARS[kind]) else [f"{where}: {value!r} is no {kind}"]
    if inner := re.fullmatch(r"list\[(.*)\]", kind):
        return [said for item in value for said in faults(item, inner[1], f"{where}[]")]
    if inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return [said for key, item in value.items() for said in faults(item, inner[1], f"{where}.{key}")]
    model = getattr(api, kind)
    if not model.openapi_types:
        allowed = [getattr(model, name) for name in dir(model) if name.isupper()]
        return [] if value in allowed else [f"{where}: {value!r} is none of {allowed}"]
    names = {wire: model.openapi_types[name] for name, wire in model.attribute_map.items()}
    unknown = [f"{where}.{key}: unknown field" for key in value if key not in names]
    return unknown + [
        said for key in value if key in names for said in faults(value[key], names[key], f"{where}.{key}")
    ]


class FakeKfp:
    """What the server holds, what it was asked, and the refusals it has been told to give next."""

    def __init__(self) -> None:
        self.recurring: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.refuse: list[int] = []
        self.url = ""
        self._numbers = itertools.count(1)

    def changes(self) -> list[str]:
        """The requests that changed something, in order."""
        return [said for said in self.asked if not said.startswith("GET")]

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if self.refuse:
            status = self.refuse.pop(0)
            return status, {"error": "told to", "code": 7, "message": f"told to answer {status}"}
        if method == "POST" and path == RECURRING:
            return self._create(self.recurring, "V2beta1RecurringRun", "recurring_run_id", body)
        if method == "POST" and path == RUNS:
            return self._create(self.runs, "V2beta1Run", "run_id", body)
        if method == "POST" and path == EXPERIMENTS:
            return self._create(self.experiments, "V2beta1Experiment", "experiment_id", body)
        for root, held, name in (
            (RECURRING, self.recurring, "recurringRuns"), (RUNS, self.runs, "runs"),
            (EXPERIMENTS, self.experiments, "experiments"),
        ):  # fmt: skip
            if method == "GET" and path == root:
                return 200, self._page(list(held.values()), name, query)
        found = re.fullmatch(rf"{RECURRING}/([^:/]+)(?::(disable))?", path)
        if found and found[1] in self.recurring:
            if method == "DELETE":
                del self.recurring[found[1]]
            elif found[2]:
                self.recurring[found[1]]["status"] = "DISABLED"
            return 200, {}
        return 404, {"message": f"{path} not found"}

    def _create(self, held: dict[str, Any], model: str, key: str, body: Any) -> tuple[int, Any]:
        wrong = faults(body, model, model)
        if model == "V2beta1RecurringRun":
            cron = body.get("trigger", {}).get("cron_schedule", {}).get("cron", "")
            wrong += [] if len(cron.split()) == 6 else [f"cron {cron!r}"]
            wrong += [] if body.get("mode") in ("ENABLE", "DISABLE") else ["mode"]
            body["status"] = f"{body.get('mode')}D"
        if not body.get("display_name"):
            wrong.append("display_name is empty")
        if wrong:
            return 400, {"message": "; ".join(wrong)}
        identity = f"id-{next(self._numbers)}"
        held[identity] = {**body, key: identity}
        return 200, held[identity]

    @staticmethod
    def _page(entries: list[Any], name: str, query: dict[str, list[str]]) -> Any:
        start, size = int(query.get("page_token", ["0"])[0] or 0), int(query.get("page_size", ["20"])[0])
        more = start + size < len(entries)
        return {name: entries[start : start + size], "next_page_token": str(start + size) if more else ""}


@contextmanager
def serving() -> Iterator[FakeKfp]:
    fake = FakeKfp()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            fake.headers.append(dict(self.headers))
            status, said = fake.answer(self.command, parts.path, parse_qs(parts.query), body)
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _do  # noqa: N815

        def log_message(self, *said: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
