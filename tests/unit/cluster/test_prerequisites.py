"""What a run needs is found out before it starts, all of it at once, without a secret's value in a message."""

from __future__ import annotations

import json
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from kiwi.cluster import prerequisites
from kiwi.cluster.kubernetes import Kubernetes, KubernetesError
from kiwi.cluster.prerequisites import Needs, PrerequisitesError, check, check_editor, missing
from kiwi.configuration import (
    BenchmarkSettings,
    CurationSettings,
    GateSettings,
    TrainerSettings,
    VlmSettings,
    WeightsSettings,
)
from kiwi.media import encode_video, png_bytes

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def service():
    """A fake of whatever answers over HTTP (MLflow, a model server, the Kubernetes API): path → status and body.

    The real ones are met by the integration tests; here their refusals are needed, which they cannot be made to give.
    """
    answers: dict[str, tuple[int, object]] = {}
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def _do(self):
            path = self.path.split("?")[0]
            asked.append((path, self.headers.get("Authorization", "")))
            status, said = answers.get(path, (404, {}))
            data = b"" if self.command == "HEAD" else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_HEAD = _do  # noqa: N815

        def log_message(self, *said):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield namedtuple("Service", "url answers asked")(f"http://127.0.0.1:{server.server_address[1]}", answers, asked)
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("KIWI_NEEDS", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "KUBERNETES_SERVICE_HOST",
                 "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for purpose in ("", "SCORE_", "GROUND_", "VERIFY_", "JUDGE_"):
        for end in ("BASE_URL", "API_KEY"):
            monkeypatch.delenv(f"KIWI_VLM_{purpose}{end}", raising=False)


def said(configuration, needs=None):
    return [f"{problem.what} | {problem.remedy}" for problem in missing(configuration, needs or Needs())]


def test_a_laptop_run_lacks_nothing(configuration):
    check(configuration)


@pytest.mark.parametrize(("name", "said"), [("flush", "no attention 'flush'"), ("flash", "works on a GPU")])
def test_an_attention_that_is_not_there_is_noticed_before_anything_starts(make_configuration, name, said):
    trainer = TrainerSettings(attention=name, device="cpu")
    with pytest.raises(PrerequisitesError, match=said):
        check_editor(make_configuration(trainer=trainer))


def test_a_tracking_server_that_is_away_is_noticed_before_anything_starts(make_configuration):
    with pytest.raises(PrerequisitesError, match=r"nothing was started(.|\n)*127.0.0.1:9 does not answer"):
        check(make_configuration(tracking_uri="http://127.0.0.1:9"))


def test_a_run_against_a_server_that_is_away_ends_before_it_is_recorded(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from kiwi.cli import app

    work = tmp_path / "work"
    done = CliRunner().invoke(app, ["run", "--workdir", str(work), "--tracking-uri", "http://127.0.0.1:9"])
    assert isinstance(done.exception, PrerequisitesError)
    assert not (work / "run.json").exists()


@pytest.mark.parametrize(("status", "word"), [(401, "MLFLOW_TRACKING_USERNAME"), (500, "answers 500"), (200, None)])
def test_the_tracking_server_must_let_us_in(make_configuration, service, monkeypatch, status, word):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "kiwi")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden-one")
    service.answers["/api/2.0/mlflow/registered-models/search"] = (status, {})
    problems = said(make_configuration(tracking_uri=service.url))
    assert service.asked[-1][1].startswith("Basic ")
    assert (word in problems[0]) if word else problems == []
    assert "hidden-one" not in "".join(problems)


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [(200, {"data": [{"id": "editscore"}]}, None), (200, {"data": [{"id": "other"}]}, "does not serve 'editscore'"),
     (401, {}, "KIWI_VLM_SCORE_API_KEY"), (404, {}, "ends in /v1"), (200, "text", "does not serve")],
)  # fmt: skip
def test_a_model_server_must_serve_the_model_that_is_asked(configuration, service, monkeypatch, status, body, word):
    asked = configuration.model_copy(
        update={"curation": CurationSettings(scorer="vlm", vlm_score=VlmSettings(model="editscore"))}
    )
    monkeypatch.setenv("KIWI_VLM_SCORE_BASE_URL", f"{service.url}/v1")
    monkeypatch.setenv("KIWI_VLM_SCORE_API_KEY", "hidden-two")
    service.answers["/v1/models"] = (status, body)
    problems = said(asked)
    assert service.asked[-1][1] == "Bearer hidden-two"
    assert (word in problems[0]) if word else problems == []
    assert "hidden-two" not in "".join(problems)


@pytest.fixture
def judged_list(make_configuration, service, monkeypatch, tmp_path):
    """A run whose gate decides on a list of 20 entries, and whose judge answers. `change` spoils it first."""

    def made(change=lambda folder: None, location="mine.yaml", **gate):
        folder = tmp_path / "bench"
        folder.mkdir()
        encode_video(folder / "clip.mp4", np.zeros((3, 16, 16, 3), np.uint8), 8.0)
        (folder / "thing.png").write_bytes(png_bytes(np.zeros((8, 8, 3), np.uint8)))
        entry = "- {src_video: clip.mp4, instruction: do it, ref_img: thing.png, edit_type: subject}\n"
        (folder / "mine.yaml").write_text(entry * 20)
        change(folder)
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", f"{service.url}/v1")
        service.answers["/v1/models"] = (200, {"data": [{"id": "judge-model"}]})
        asked = BenchmarkSettings(
            listed=f"mine={folder / location}", judge="mllm", mllm=VlmSettings(model="judge-model")
        )
        return make_configuration(benchmark=asked, gate=GateSettings(**gate))

    return made


def entries_without_a_clip(count):
    def change(folder):
        path = folder / "mine.yaml"
        path.write_text(path.read_text().replace("clip.mp4", "gone.mp4", count))

    return change


def test_a_list_and_a_judge_that_can_be_used_are_no_problem(judged_list):
    assert said(judged_list(entries_without_a_clip(1))) == [], "one of twenty is within gate.min_coverage"


@pytest.mark.parametrize(
    ("change", "location", "word"),
    [
        (lambda folder: None, "other.yaml", "other.yaml"),
        (lambda folder: None, "", "names no benchmark"),
        (lambda folder: (folder / "mine.yaml").write_text("- {src_video: ["), "mine.yaml", "broken YAML"),
        (lambda folder: (folder / "mine.yaml").write_text("- {src_video: a.mp4}"), "mine.yaml", "instruction"),
        (entries_without_a_clip(2), "mine.yaml", "2 of 20 entries cannot be edited: gone.mp4"),
        (lambda folder: (folder / "thing.png").unlink(), "mine.yaml", "20 of 20 entries cannot be edited: thing.png"),
        (lambda folder: (folder / "clip.mp4").write_bytes(b"cut off"), "mine.yaml", "20 of 20 entries"),
    ],
    ids=["no list", "a folder", "broken", "a key is missing", "clips are gone", "no reference", "no video"],
)  # fmt: skip
def test_a_list_that_cannot_be_used_is_noticed_before_any_work(judged_list, change, location, word):
    (problem,) = said(judged_list(change, location))
    assert word in problem


def test_how_much_of_a_list_must_be_there_is_what_the_gate_asks_for(judged_list):
    assert said(judged_list(entries_without_a_clip(5), min_coverage=0.75)) == []


def test_a_bound_that_a_list_can_never_show_is_noticed_before_hours_of_training(judged_list):
    (problem,) = said(judged_list(floors={"learning.psnr_full": 21.0}, ceilings={"learning.accuracy_swap": 0.5}))
    assert "a bound on learning.psnr_full and 1 more" in problem
    assert "--set gate.floors={} --set gate.ceilings={}" in problem


def test_bounds_on_what_the_judge_says_go_with_a_list(judged_list):
    assert said(judged_list(floors={"overall": 3.0})) == []


def test_a_long_list_is_looked_at_in_part(judged_list, monkeypatch):
    from kiwi.benchmark import listed

    seen = []
    monkeypatch.setattr(listed, "LOOKED_AT", 7)
    monkeypatch.setattr(listed, "_fault", lambda root, entry: seen.append(entry.id) or "")
    assert said(judged_list()) == []
    assert len(seen) == 7
    assert {"0000_clip", "0019_clip"} <= set(seen), "from the first to the last"


def test_a_list_in_a_store_is_looked_at_without_fetching_its_clips(judged_list, monkeypatch):
    """The store in memory is a fake of S3: it takes the same way through kiwi.storage."""
    from kiwi import storage

    asked = judged_list()
    mine = asked.benchmark.model_copy(update={"listed": "mine=memory://prerequisites/mine.yaml"})
    asked = asked.model_copy(update={"benchmark": mine})
    entry = b"- {src_video: v/clip.mp4, instruction: do it, ref_img: thing.png, edit_type: subject}\n"
    for name, data in (("mine.yaml", entry * 3), ("v/clip.mp4", b"not read"), ("thing.png", b"not read")):
        storage.write_bytes(f"memory://prerequisites/{name}", data)
    assert said(asked) == []
    storage.delete("memory://prerequisites/v/clip.mp4")
    (problem,) = said(asked)
    assert "3 of 3 entries cannot be edited: v/clip.mp4: no such file" in problem
    storage.delete("memory://prerequisites/mine.yaml")
    (problem,) = said(asked)
    assert "mine.yaml" in problem


def test_a_judge_is_asked_whether_it_serves_the_model_and_its_rubrics_are_read(judged_list, service, tmp_path):
    asked = judged_list()
    service.answers["/v1/models"] = (200, {"data": [{"id": "another"}]})
    (problem,) = said(asked)
    assert "(judge) does not serve 'judge-model' but another" in problem
    service.answers["/v1/models"] = (200, {"data": [{"id": "judge-model"}]})
    mine = asked.benchmark.mllm.model_copy(update={"prompt": str(tmp_path / "no rubrics")})
    spoilt = asked.benchmark.model_copy(update={"mllm": mine})
    (problem,) = said(asked.model_copy(update={"benchmark": spoilt}))
    assert "no rubrics" in problem
    nobody = asked.benchmark.model_copy(update={"judge": "nobody"})
    (problem,) = said(asked.model_copy(update={"benchmark": nobody}))
    assert "no judge 'nobody'" in problem


@pytest.mark.parametrize(
    ("status", "word"), [(403, "accept its licence"), (503, "answers 503"), (200, None), (404, None)]
)
def test_weights_that_may_not_be_fetched_are_named(configuration, service, monkeypatch, status, word):
    sam3 = CurationSettings(segmenter="sam3", sam3=WeightsSettings(model="facebook/sam3"))
    monkeypatch.setenv("HF_ENDPOINT", service.url)
    service.answers["/facebook/sam3/resolve/main/config.json"] = (status, {})
    problems = said(configuration.model_copy(update={"curation": sam3}))
    assert ("facebook/sam3" in problems[0] and word in problems[0]) if word else problems == []


def test_everything_that_is_missing_stands_in_one_list(make_configuration, monkeypatch, tmp_path):
    curation = CurationSettings(
        scorer="vlm", grounder="vlm", segmenter="sam3", sam3=WeightsSettings(model="/no/weights")
    )
    needs = {"secrets": {"kiwi-s3": ["KIWI_TEST_KEY_A", "KIWI_TEST_KEY_B"]}, "free_gigabytes": 10}
    monkeypatch.setenv("KIWI_NEEDS", json.dumps(needs))
    monkeypatch.setenv("KIWI_TEST_KEY_A", "hidden-three")
    monkeypatch.setattr(prerequisites.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 10**9))
    with pytest.raises(PrerequisitesError) as caught:
        check(make_configuration(curation=curation, tracking_uri="http://127.0.0.1:9"))
    listed = str(caught.value)
    for word in ("6 things are missing", "'kiwi-s3' gives no KIWI_TEST_KEY_B", "1.0 GB free, 10 are needed",
                 "127.0.0.1:9 does not answer", "KIWI_VLM_SCORE_BASE_URL", "KIWI_VLM_GROUND_BASE_URL",
                 "no weights in /no/weights"):  # fmt: skip
        assert word in listed.replace(
            "KIWI_VLM_BASE_URL is not set", "KIWI_VLM_SCORE_BASE_URL KIWI_VLM_GROUND_BASE_URL"
        )
    assert "hidden-three" not in listed


def test_a_quota_below_one_task_and_a_queue_that_is_not_there_are_noticed(configuration, service, monkeypatch):
    monkeypatch.setattr(prerequisites, "inside_cluster", lambda: True)
    monkeypatch.setattr(Kubernetes, "inside", classmethod(lambda cls: Kubernetes(service.url, "kiwi", "hidden-four")))
    quota = {"metadata": {"name": "compute"}, "status": {"hard": {"requests.nvidia.com/gpu": "4"}}}
    service.answers["/api/v1/namespaces/kiwi/resourcequotas"] = (200, {"items": [quota]})
    problems = said(configuration, Needs(accelerators={"nvidia.com/gpu": 8}, queue="kiwi", namespace="kiwi"))
    assert ["allows 4 nvidia.com/gpu, one task asks for 8" in problems[0], "no queue 'kiwi'" in problems[1]] == [
        True
    ] * 2
    assert said(configuration, Needs(accelerators={"nvidia.com/gpu": 4})) == []


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("postgresql://kiwi:hidden-six@127.0.0.1:9/kiwi", "127.0.0.1"),
        ("mysql://kiwi:hidden-six@host/kiwi", "postgresql://"),
        ("sqlite:////dev/null/registry.db", "/dev/null"),
    ],
    ids=["away", "another kind", "a file for a folder"],
)
def test_a_registry_that_cannot_be_used_is_noticed_before_hours_of_training(configuration, monkeypatch, url, word):
    monkeypatch.setenv("KIWI_REGISTRY_URL", url)
    (problem,) = said(configuration)
    assert word in problem
    assert "hidden-six" not in problem


def test_a_registry_that_answers_is_no_problem(configuration, monkeypatch, tmp_path):
    monkeypatch.setenv("KIWI_REGISTRY_URL", f"sqlite:///{tmp_path}/registry.db")
    assert said(configuration) == []


def test_a_runtime_for_several_nodes_that_is_not_there_is_noticed(configuration, service, monkeypatch):
    monkeypatch.setattr(prerequisites, "inside_cluster", lambda: True)
    monkeypatch.setattr(Kubernetes, "inside", classmethod(lambda cls: Kubernetes(service.url, "kiwi", "hidden-five")))
    service.answers["/api/v1/namespaces/kiwi/resourcequotas"] = (200, {"items": []})
    needs = Needs(training_runtime="kiwi-training", namespace="kiwi")
    (problem,) = said(configuration, needs)
    assert "no TrainingRuntime 'kiwi-training'" in problem
    assert "`nodes: 1`" in problem
    path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kiwi/trainingruntimes/kiwi-training"
    service.answers[path] = (200, {"metadata": {"name": "kiwi-training"}})
    assert said(configuration, needs) == []


def test_an_account_that_may_not_look_says_so(service):
    service.answers["/x"] = (403, {})
    with pytest.raises(KubernetesError, match="may not read /x"):
        Kubernetes(service.url, "kiwi", "hidden").get("/x")
