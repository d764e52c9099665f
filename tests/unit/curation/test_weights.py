"""Weights that are out of reach give one clear line, and only safetensors are read.

The real hub is never asked: a fake one on this machine gives its answers, or HF_HUB_OFFLINE keeps it away.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from kiwi.configuration import ImageEditorSettings, WeightsSettings
from kiwi.curation.curators import clip_deduplicate, qwen_image_edit_synthesize, sam3_segment
from kiwi.curation.curators.hub import cached_where_hub_is_away
from kiwi.curation.curators.weights import WeightsError, device, loading, once, pretrained, version, within_memory
from kiwi.errors import UsageError

SETTINGS = WeightsSettings(model="facebook/sam3", device="cpu", dtype="float32")
ANSWERS = {
    "gated": (403, "GatedRepo"),
    "absent": (404, "RepoNotFound"),
    "private": (401, "RepoNotFound"),
    "stale": (404, "RevisionNotFound"),
}


class Refusing(BaseHTTPRequestHandler):
    """Refuses every model, as the real hub does: status and X-Error-Code by the name. Its own page is there."""

    server: FakeHub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, code = next((answer for name, answer in ANSWERS.items() if name in self.path), (200, ""))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class FakeHub(ThreadingHTTPServer):
    """A hub on this machine, for the real one is not to be had in tests; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Refusing)
        self.asked: list[str] = []


def refusal(load: Callable[[Any], object], settings: WeightsSettings) -> str:
    with pytest.raises(WeightsError) as caught:
        load(settings)
    assert "\n" not in caught.value.message + caught.value.remedy
    return f"{caught.value.message} | {caught.value.remedy}"


def all_three() -> list[str]:
    """What each curator says of a model that is gated."""
    named: dict[str, Any] = {"model": "some/gated", "device": "cpu"}
    return [
        refusal(sam3_segment.load, WeightsSettings(**named)),
        refusal(qwen_image_edit_synthesize.load, ImageEditorSettings(**named)),
        refusal(clip_deduplicate.load, WeightsSettings(**named)),
    ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A FakeHub in place of the real one, and an empty cache. huggingface_hub read its environment when it was
    imported, so that what it keeps of it is changed."""
    server = FakeHub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_what_the_hub_refuses_names_the_model_its_page_and_the_setting(hub: FakeHub) -> None:
    gated, absent, private, stale = (
        refusal(clip_deduplicate.load, WeightsSettings(model=f"some/{name}", device="cpu")) for name in ANSWERS
    )
    assert gated.startswith("curation.clip.model: some/gated is gated")
    assert "https://huggingface.co/some/gated" in gated
    assert "HF_TOKEN" in gated
    assert "set curation.clip.model to a local folder" in gated
    assert absent.startswith("curation.clip.model: there is no model some/absent, or it is private")
    assert private.startswith("curation.clip.model: there is no model some/private, or it is private")
    assert stale.startswith("curation.clip.revision: some/stale has no such revision")
    segmenter, editor, _ = all_three()
    assert segmenter.startswith("curation.sam3.model: some/gated is gated")
    assert editor.startswith("curation.qwen_image_edit.model: some/gated is gated")
    assert all(any(f"some/{name}" in path for path in hub.asked) for name in ANSWERS)


def test_without_a_network_each_curator_says_how_to_bring_its_weights(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what the variable of that name sets
    for name, line in zip(("sam3", "qwen_image_edit", "clip"), all_three(), strict=True):
        unreached = "some/gated is not in the local cache, and the hub cannot be reached"
        assert line.startswith(f"curation.{name}.model: {unreached}")
        assert "`hf download some/gated`; https://huggingface.co/some/gated" in line
    assert hub.asked == []


def test_an_empty_name_is_said_to_be_empty() -> None:
    with pytest.raises(WeightsError, match=r"curation\.clip\.model is empty"), loading("curation.clip", ""):
        pytest.fail("it was looked for")


@pytest.mark.parametrize("name", ["/absent/folder", "./absent", "absent/folder/of/three"])
def test_a_folder_that_is_not_there_is_no_question_for_the_hub(name: str) -> None:
    with (
        pytest.raises(WeightsError, match=f"curation.clip.model: there is no folder {name}"),
        loading("curation.clip", name),
    ):
        pytest.fail("it was looked for")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**size, "vocab_size": 32},
        vision_config={**size, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def copied(saved: Path, folder: Path) -> WeightsSettings:
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return SETTINGS.model_copy(update={"model": str(folder)})


def load(settings: WeightsSettings) -> object:
    return pretrained(CLIPModel, "curation.clip", settings, torch.float32)


def test_a_pickle_is_refused_and_not_opened(saved: Path, tmp_path: Path) -> None:
    settings = copied(saved, tmp_path)
    load(settings)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"as a pickle \(pytorch_model.bin\)"):
        load(settings)


def test_damaged_weights_are_said_to_be_damaged(saved: Path, tmp_path: Path) -> None:
    settings = copied(saved, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(WeightsError, match="is damaged"):
        load(settings)


def test_weights_that_lack_a_tensor_are_refused_rather_than_drawn_at_random(saved: Path, tmp_path: Path) -> None:
    settings = copied(saved, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"no weights for 1 tensors \(visual_projection.weight"):
        load(settings)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("you can't allocate memory")]
)
def test_out_of_memory_says_what_to_lower(error: Exception) -> None:
    """The errors are made here: a test cannot exhaust a machine."""
    lower = within_memory("segmenting", "lower curation.sam3.batch (now 8)")
    with pytest.raises(WeightsError, match="out of memory while segmenting") as caught, lower:
        raise error
    assert caught.value.remedy == "lower curation.sam3.batch (now 8)"


def test_other_errors_are_not_called_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), within_memory("segmenting", "lower the batch"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x"])
def test_a_device_that_does_not_exist_is_a_wrong_setting(name: str) -> None:
    with pytest.raises(UsageError, match=f'curation.clip.device: no device is called "{name}"'):
        device("curation.clip", SETTINGS.model_copy(update={"device": name}))


def test_cuda_without_a_gpu_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device("curation.clip", SETTINGS.model_copy(update={"device": "auto"})) == "cpu"
    with pytest.raises(UsageError, match="this machine has no GPU"):
        device("curation.clip", SETTINGS.model_copy(update={"device": "cuda:1"}))


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device("curation.clip", SETTINGS.model_copy(update={"device": "auto"})) == "cuda"


def test_a_version_tells_models_revisions_precisions_and_loras_apart() -> None:
    editor = ImageEditorSettings(model="facebook/sam3", dtype="float32")
    all_settings = [
        SETTINGS,
        SETTINGS.model_copy(update={"revision": "abc"}),
        SETTINGS.model_copy(update={"dtype": "bfloat16"}),
        SETTINGS.model_copy(update={"model": "facebook/sam2"}),
        editor.model_copy(update={"lora": "someone/lora"}),
    ]
    assert len({version("1", settings) for settings in all_settings}) == len(all_settings)
    assert version("1", SETTINGS) == "1-facebook/sam3@main-float32"
    assert version("1", SETTINGS.model_copy(update={"batch": 2, "device": "cuda"})) == version("1", SETTINGS)


def test_a_failed_load_is_tried_again_and_a_good_one_kept() -> None:
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise WeightsError("not yet")
        return len(calls)

    loaded = once(work)
    with pytest.raises(WeightsError):
        loaded()
    assert (loaded(), loaded()) == (2, 2)


def test_building_curators_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from kiwi.configuration import CurationSettings\n"
        "from kiwi.curation.curators import registry\n"
        "names = {'segmenter': 'sam3', 'synthesizer': 'qwen_image_edit', 'deduplicator': 'clip'}\n"
        "print(registry.provenance(CurationSettings(**names)))\n"
        "print(sorted(name for name in ('torch', 'transformers', 'diffusers') if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    provenance, loaded = done.stdout.splitlines()
    assert "sam3-1-facebook/sam3@main" in provenance
    assert loaded == "[]"


def test_a_hub_whose_certificate_only_its_own_library_trusts_is_no_hub_that_is_away(monkeypatch, tmp_path):
    def untrusted(*_, **__):
        raise requests.exceptions.SSLError("certificate verify failed")

    monkeypatch.setattr(requests, "head", untrusted)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with cached_where_hub_is_away("some/model"):
        assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_nobody_reaches_is_away(monkeypatch):
    def nobody(*_, **__):
        raise requests.ConnectionError("refused")

    monkeypatch.setattr(requests, "head", nobody)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with cached_where_hub_is_away("some/model"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
