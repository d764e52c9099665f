"""`kiwi doctor`: each thing is ok, missing or failed, with what to do; quick; no secret shown."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kiwi.cli import app
from kiwi.doctor import Check, answers, examine, services
from kiwi.doctor import cluster as far
from kiwi.doctor.checks import Question
from kiwi.errors import KiwiError

SECRET = "pass-word-of-ours"


@dataclass
class Site:
    """A real HTTP server: `pages` by path; one that is not there is 404; None hangs."""

    port: int = 0
    pages: dict[str, tuple[int, Any] | None] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)
    posted: list[Any] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.headers.append(dict(self.headers.items()))
            page = state.pages.get(self.path.partition("?")[0], (404, {}))
            if page is None:
                state.closing.wait(60)
                return
            body = json.dumps(page[1]).encode()
            self.send_response(page[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            state.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.do_GET()

        def log_message(self, *said: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    state.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield state
    state.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("KIWI_", "MLFLOW_", "AWS_", "KUBE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.setattr(answers, "SECONDS", 0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def checked(tracking_uri: str | None = None, needed: bool = False) -> dict[str, Check]:
    questions = [*services.questions(tracking_uri, needed), *far.questions(needed)]
    return {check.name: check for check in examine(questions, 10.0)}


def doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["doctor", "--json", *arguments], env=environment)
    return done.exit_code, json.loads(done.stdout)


def test_a_laptop_without_services_is_well_and_a_cluster_without_them_is_not() -> None:
    code, said = doctor()
    assert (code, said["ok"]) == (0, True)
    states = {check["name"]: check["state"] for check in said["checks"]}
    assert states["core"] == states["git"] == states["disk"] == "ok"
    assert states["mlflow"] == states["pipelines server"] == states["alerts"] == "missing"
    code, said = doctor("--cluster")
    assert code == 1
    needed = {check["name"] for check in said["checks"] if check["needed"] and check["state"] != "ok"}
    assert needed == {"mlflow", "s3", "dvc remote", "pipelines server"}
    assert all(check["remedy"] for check in said["checks"] if check["state"] != "ok")


def test_services_that_answer_are_ok(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site.pages = {
        "/api/2.0/mlflow/registered-models/search": (200, {}),
        "/v1/models": (200, {"data": [{"id": "qwen"}]}),
        "/apis/v2beta1/healthz": (200, {"tag_name": "2.17.0"}),
        "/-/healthy": (200, "ok"),
        "/": (403, "no"),
    }
    (tmp_path / "remote").mkdir()
    for name, value in {
        "MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": SECRET, "KIWI_VLM_BASE_URL": f"{site.url}/v1",
        "KIWI_KFP_HOST": site.url, "KIWI_KFP_TOKEN": "a-token", "KIWI_PUSHGATEWAY_URL": site.url,
        "AWS_ACCESS_KEY_ID": "kiwi", "AWS_ENDPOINT_URL": site.url, "KIWI_ALERT_URL": f"{site.url}/hook",
        "KIWI_DVC_REMOTE": str(tmp_path / "remote"), "KIWI_REGISTRY_URL": f"sqlite:///{tmp_path}/registry.db",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = checked(site.url)
    assert {name: check.said for name, check in found.items() if check.bad} == {}
    assert found["model server: judge"].said.endswith("serves qwen")
    assert "2.17.0" in found["pipelines server"].said
    sent = {header.get("Authorization", "") for header in site.headers}
    assert "Bearer a-token" in sent
    assert any(header.startswith("Basic ") for header in sent)


@pytest.mark.parametrize("status", [401, 403])
def test_a_service_that_lets_nobody_in_says_which_secret(
    site: Site, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    site.pages = dict.fromkeys(
        ("/api/2.0/mlflow/registered-models/search", "/v1/models", "/apis/v2beta1/healthz"), (status, {})
    )
    monkeypatch.setenv("KIWI_VLM_SCORE_BASE_URL", f"{site.url}/v1")
    monkeypatch.setenv("KIWI_KFP_HOST", site.url)
    found = checked(site.url)
    assert "MLFLOW_TRACKING_PASSWORD" in found["mlflow"].remedy
    assert "KIWI_VLM_SCORE_API_KEY" in found["model server: score"].remedy
    assert "KIWI_KFP_TOKEN" in found["pipelines server"].remedy
    assert all(found[name].state == "failed" for name in ("mlflow", "model server: score", "pipelines server"))


def test_what_is_away_or_hangs_fails_and_nothing_waits_for_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    site.pages = {"/v1/models": None, "/apis/v2beta1/healthz": None}
    monkeypatch.setenv("KIWI_VLM_BASE_URL", f"{site.url}/v1")
    monkeypatch.setenv("KIWI_KFP_HOST", site.url)
    monkeypatch.setenv("KIWI_PUSHGATEWAY_URL", nobody)
    monkeypatch.setenv("KIWI_REGISTRY_URL", f"postgresql://kiwi:{SECRET}@127.0.0.1:{free_port()}/kiwi")
    found = checked(nobody)
    failed = {name for name, check in found.items() if check.state == "failed"}
    servers = {f"model server: {purpose}" for purpose in services.PURPOSES}
    assert failed == {"mlflow", "pipelines server", "pushgateway", "registry database", *servers}
    assert all(found[name].remedy for name in failed)
    assert "no answer within" in found["pipelines server"].said
    assert SECRET not in str(found)


def test_a_page_that_is_no_pipelines_api_is_told_from_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages = {"/apis/v2beta1/healthz": (200, "<html>sign in</html>")}
    monkeypatch.setenv("KIWI_KFP_HOST", site.url)
    check = checked()["pipelines server"]
    assert check.state == "failed"
    assert "not as the pipelines API does" in check.said


def test_checks_run_side_by_side_and_one_that_hangs_is_given_up() -> None:
    def slow() -> Check:
        time.sleep(0.3)
        return Check("x", "slow", "ok", "")

    def broken() -> Check:
        raise KiwiError("it is broken", "mend it")

    questions = [*[Question("x", "slow", slow)] * 8, Question("x", "hung", lambda: time.sleep(60) or slow())]
    questions.append(Question("x", "broken", broken))
    began = time.monotonic()
    found = examine(questions, 1.5)
    assert time.monotonic() - began < 0.3 * 8 + 1.0
    assert [check.state for check in found] == ["ok"] * 8 + ["failed", "failed"]
    assert found[-2].said == "no answer within 1.5 s"
    assert (found[-1].said, found[-1].remedy) == ("it is broken", "mend it")


@pytest.mark.parametrize("text", ["{", "a: [", "current-context: x\ncontexts: []\n", "clusters: 5\n", ""])
def test_a_broken_kubeconfig_is_told(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    check = checked()["kubeconfig"]
    assert check.state == "failed"
    assert str(tmp_path / "config") in check.said


def test_the_cluster_of_the_current_context_is_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = {
        "current-context": "prod",
        "contexts": [
            {"name": "dev", "context": {"cluster": "other", "user": "ann"}},
            {"name": "prod", "context": {"cluster": "ours", "user": "ann"}},
        ],
        "clusters": [
            {"name": "other", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}},
            {"name": "ours", "cluster": {"server": site.url}},
        ],
        "users": [{"name": "ann", "user": {"token": SECRET}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    site.pages = {"/version": (200, {"gitVersion": "v1.34.1"})}
    check = checked()["kubeconfig"]
    assert (check.state, check.said) == ("ok", f"prod at {site.url}, Kubernetes v1.34.1")
    assert site.headers[0]["Authorization"] == f"Bearer {SECRET}"


def test_a_test_alert_is_sent_on_demand_alone(site: Site) -> None:
    site.pages = {"/hook": (200, {})}
    doctor(KIWI_ALERT_URL=f"{site.url}/hook")
    assert site.posted == []
    code, said = doctor("--test-alert", KIWI_ALERT_URL=f"{site.url}/hook")
    assert code == 0, said
    assert [body["event"] for body in site.posted] == ["test"]
    code, said = doctor("--test-alert")
    assert code == 1
    assert said["checks"][-1]["name"] == "test alert"
    site.pages = {"/hook": (403, {})}
    code, said = doctor("--test-alert", KIWI_ALERT_URL=f"{site.url}/hook")
    assert code == 1
    assert "refuses the alert (403)" in said["checks"][-1]["said"]


def test_no_secret_is_shown_by_a_failing_check() -> None:
    nobody = f"127.0.0.1:{free_port()}"
    environment = {
        "MLFLOW_TRACKING_URI": f"http://ann:{SECRET}@{nobody}", "KIWI_VLM_BASE_URL": f"http://ann:{SECRET}@{nobody}/v1",
        "AWS_ACCESS_KEY_ID": "kiwi", "AWS_ENDPOINT_URL": f"http://ann:{SECRET}@{nobody}",
        "KIWI_PUSHGATEWAY_URL": f"http://ann:{SECRET}@{nobody}", "KIWI_KFP_HOST": f"http://ann:{SECRET}@{nobody}",
        "KIWI_ALERT_URL": f"ftp://{nobody}/{SECRET}", "KIWI_REGISTRY_URL": f"postgresql://ann:{SECRET}@{nobody}/kiwi",
    }  # fmt: skip
    for arguments in (["doctor", "--json"], ["doctor"]):
        done = CliRunner().invoke(app, arguments, env=environment)
        assert done.exit_code == 1
        assert SECRET not in done.output


def test_an_image_for_clients_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from kiwi.doctor import installed

    monkeypatch.setitem(installed.GROUPS, "train", ("no-such-package",))
    code, said = doctor()
    assert code == 1
    assert any("pip install 'kiwi[train]'" in check["remedy"] for check in said["checks"])
    assert doctor(KIWI_IMAGE_TARGET="client")[0] == 0
    assert doctor(KIWI_IMAGE_TARGET="gpu")[0] == 1
