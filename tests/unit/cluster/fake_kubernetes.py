"""A fake of the Kubernetes API with Kubeflow Trainer 2.3 in it, since no cluster can be had here. It is kept thin.

It holds TrainJobs and pods with logs in memory under the server's own paths. A TrainJob's body is checked against
infra/validation/custom-resources.json, which is written from the operators' schemas and closed to all other fields. The
test plays Trainer's controller: it sets the status, as the real one does (conditions and jobsStatus). What it cannot
show: admission rules, scheduling, Kueue, anything that runs.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kiwi/trainjobs"
PODS = "/api/v1/namespaces/kiwi/pods"


def _manifests() -> Any:
    place = Path(__file__).parents[2] / "pipelines" / "manifests.py"
    spec = importlib.util.spec_from_file_location("manifests", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MANIFESTS = _manifests()


class FakeKubernetes:
    """What the server holds, what it was asked, and the refusals it has been told to give next.

    `trainer` False: Kubeflow Trainer is not installed. `keep` True: deleted jobs stay, as with a finalizer.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, tuple[dict[str, Any], list[str]]] = {}
        self.asked: list[str] = []
        self.tokens: list[str] = []
        self.refuse: list[int] = []
        self.trainer = True
        self.keep = False
        self.url = ""
        self._numbers = itertools.count(1)

    def changes(self) -> list[str]:
        return [said for said in self.asked if not said.startswith("GET")]

    def set(self, name: str, condition: str = "", reason: str = "", message: str = "", ready: int = 0) -> None:
        """What Trainer's controller would write into a job's status."""
        said = {"type": condition, "status": "True", "reason": reason, "message": message}
        counted = {"name": "node", "ready": ready, "active": 1, "succeeded": 0, "failed": 0, "suspended": 0}
        self.jobs[name]["status"] = {"conditions": [said] if condition else [], "jobsStatus": [counted]}

    def pod(self, job: str, name: str, *lines: str, node: int = 0, created: str = "2026-01-01T00:00:00Z") -> None:
        labels = {"jobset.sigs.k8s.io/jobset-name": job, "batch.kubernetes.io/job-completion-index": str(node)}
        self.pods[name] = ({"metadata": {"name": name, "labels": labels, "creationTimestamp": created}}, list(lines))

    def answer(self, verb: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        self.asked.append(f"{verb} {path}")
        if self.refuse:
            status = self.refuse.pop(0)
            return status, {"kind": "Status", "message": f"told to answer {status}", "code": status}
        if path.startswith(JOBS) and self.trainer:
            return self._job(verb, path.removeprefix(JOBS).lstrip("/"), query, body)
        if path == PODS:
            return 200, {"items": [pod for pod, _ in self.pods.values() if _selected(pod, query)]}
        if found := re.fullmatch(rf"{PODS}/([^/]+)/log", path):
            return self._log(found[1], query)
        return 404, {"message": "the server could not find the requested resource"}

    def _job(self, verb: str, name: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if verb == "POST":
            wrong = MANIFESTS.faults(body)
            made = body["metadata"]["name"]
            if wrong or made in self.jobs:
                return (422, {"message": "; ".join(wrong)}) if wrong else (409, {"message": f"{made} already exists"})
            body["metadata"]["uid"] = f"uid-{next(self._numbers)}"
            self.jobs[made] = body
            return 201, body
        if not name:
            return 200, {"items": [job for job in self.jobs.values() if _selected(job, query)]}
        if name not in self.jobs:
            return 404, {"message": f"{name} not found"}
        if verb == "DELETE":
            wanted = (body or {}).get("preconditions", {}).get("uid")
            if wanted and wanted != self.jobs[name]["metadata"]["uid"]:
                return 409, {"message": "the uid in the precondition does not match"}
            if self.keep:
                self.jobs[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            else:
                del self.jobs[name]
            return 200, {}
        return 200, self.jobs[name]

    def _log(self, pod: str, query: dict[str, str]) -> tuple[int, Any]:
        if pod not in self.pods:
            return 404, {"message": f"{pod} not found"}
        lines = self.pods[pod][1]
        if not lines:
            return 400, {"message": f'container "node" in pod "{pod}" is waiting to start: ContainerCreating'}
        since = query.get("sinceTime", "")[:19]  # whole seconds, as the kubelet takes it
        kept = [line for line in lines if line[:19] >= since]
        return 200, kept[-int(query["tailLines"]) :] if "tailLines" in query else kept


def _selected(item: dict[str, Any], query: dict[str, str]) -> bool:
    wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
    return wanted.items() <= item["metadata"].get("labels", {}).items()


@contextmanager
def serving() -> Iterator[FakeKubernetes]:
    fake = FakeKubernetes()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            fake.tokens.append(self.headers.get("Authorization", ""))
            status, said = fake.answer(self.command, parts.path, query, body)
            data = "\n".join(said).encode() if isinstance(said, list) else json.dumps(said).encode()
            self.send_response(status)
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
