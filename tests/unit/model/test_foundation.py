"""A released size finds out at once, and without torch, what it lacks: weights, disk, a GPU."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kiwi.cluster.prerequisites import PrerequisitesError, check_editor
from kiwi.configuration import ModelSettings, RunConfiguration
from kiwi.model.foundation import FOUNDATIONS, LANGUAGE_LAYERS, LANGUAGE_WIDTH, faults, needed_gigabytes
from kiwi.model.wan import QWEN_3B, SIZES, TRAINED_SIZES
from kiwi.presets import build

PRESET = "wan2.2-5b"


def safetensors(path: Path, declared: int = 8) -> None:
    """A file with one tensor of eight bytes, whose header speaks of `declared`."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [declared // 4], "data_offsets": [0, declared]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Folders that are named and configured as the released ones; their weights are one tensor each."""
    parts = {
        "backbone/transformer": ({"_class_name": "WanTransformer3DModel", "num_attention_heads": 24, "num_layers": 30,
                                  "in_channels": 48}, "diffusion_pytorch_model-00001-of-00001.safetensors"),
        "backbone/vae": ({"_class_name": "AutoencoderKLWan", "z_dim": 48}, "diffusion_pytorch_model.safetensors"),
        "qwen": ({"model_type": "qwen2_5_vl", "hidden_size": 2048, "num_hidden_layers": 36}, "model.safetensors"),
    }  # fmt: skip
    for name, (config, weights) in parts.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        safetensors(folder / weights)
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.safetensors"}}
    transformer = tmp_path / "backbone" / "transformer"
    (transformer / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "qwen" / "tokenizer.json").write_text("{}")
    return tmp_path


def settings(folder: Path, preset: str = PRESET) -> ModelSettings:
    return ModelSettings(preset=preset, backbone=str(folder / "backbone"), language_model=str(folder / "qwen"))


def configuration(folder: Path, **model: str) -> RunConfiguration:
    overrides = [f"model.{name}={value}" for name, value in model.items()]
    return build(PRESET, workspace=folder / "work", tracking_uri="", overrides=overrides)


def rewritten(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_whole_foundation_weights_have_no_fault(folders: Path) -> None:
    assert list(faults(settings(folders))) == []
    assert list(faults(ModelSettings())) == []


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no folder .*transformer": lambda at: (at / "backbone" / "transformer").rename(at / "elsewhere"),
    r"transformer holds a 'UNet'": lambda at: rewritten(
        at / "backbone" / "transformer" / "config.json", _class_name="UNet"
    ),
    "40 layers": lambda at: rewritten(at / "backbone" / "transformer" / "config.json", num_layers=40),
    r"00001-of-00001\.safetensors does not exist": lambda at: next(
        (at / "backbone" / "transformer").glob("*-of-*")
    ).unlink(),
    "AutoencoderKLWan of 48": lambda at: rewritten(at / "backbone" / "vae" / "config.json", z_dim=16),
    r"vae/config\.json is not valid JSON": lambda at: (at / "backbone" / "vae" / "config.json").write_text("{"),
    "its header speaks of": lambda at: safetensors(at / "backbone" / "vae" / "diffusion_pytorch_model.safetensors", 80),
    "damaged, or no safetensors": lambda at: (at / "qwen" / "model.safetensors").write_bytes(b"\xff" * 64),
    "is a pickle": lambda at: (at / "qwen" / "model.safetensors").rename(at / "qwen" / "pytorch_model.bin"),
    "holds a 'llama'": lambda at: rewritten(at / "qwen" / "config.json", model_type="llama"),
    "3584 wide": lambda at: rewritten(at / "qwen" / "config.json", hidden_size=3584),
    "no tokenizer": lambda at: (at / "qwen" / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_what_is_wrong_with_them_is_one_line_and_a_remedy(folders: Path, said: str) -> None:
    DAMAGES[said](folders)
    ((message, remedy),) = faults(settings(folders))
    assert re.search(said, message), message
    assert "\n" not in message
    assert remedy


def test_weights_of_another_size_are_refused(folders: Path) -> None:
    assert len(list(faults(settings(folders, "wan2.1-14b")))) == 2  # transformer and autoencoder


def test_weights_that_are_not_named_are_asked_for_once(tmp_path: Path) -> None:
    ((message, remedy),) = faults(ModelSettings(preset=PRESET))
    assert "backbone and language_model name none" in message
    assert "--set model.backbone=FOLDER --set model.language_model=FOLDER" in remedy


def test_the_facts_are_those_of_the_sizes_that_are_built() -> None:
    assert set(FOUNDATIONS) == set(TRAINED_SIZES)
    for name, foundation in FOUNDATIONS.items():
        config = SIZES[name].transformer
        assert (foundation.heads, foundation.layers, foundation.channels) == (
            config["num_attention_heads"], config["num_layers"], config["in_channels"],
        )  # fmt: skip
    text = QWEN_3B["text_config"]
    assert (text["hidden_size"], text["num_hidden_layers"]) == (LANGUAGE_WIDTH, LANGUAGE_LAYERS)


def test_a_run_that_lacks_weights_disk_and_gpu_says_so_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("kiwi.model.foundation.needed_gigabytes", lambda configuration: 10.0**9)
    monkeypatch.delenv("KIWI_NEEDS", raising=False)
    with pytest.raises(PrerequisitesError, match="3 things are missing") as error:
        check_editor(configuration(tmp_path))
    for said in ("starts from released weights", "1e+09 are needed for checkpoints", "needs a GPU"):
        assert said in error.value.message
    check_editor(build("tiny", workspace=tmp_path / "work", tracking_uri=""))


def test_a_run_that_has_all_of_it_starts(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("kiwi.model.foundation.needed_gigabytes", lambda configuration: 0.0)
    check_editor(configuration(folders, backbone=str(folders / "backbone"), language_model=str(folders / "qwen")))


def test_folders_are_kept_whole_for_tasks_that_run_elsewhere(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    assert configuration(folders, backbone="backbone").model.backbone == str(folders / "backbone")


def test_disk_grows_with_kept_checkpoints_and_shrinks_with_short_moments(tmp_path: Path) -> None:
    plain = configuration(tmp_path)
    kept = plain.model_copy(update={"trainer": plain.trainer.model_copy(update={"keep": 3})})
    short = plain.model_copy(
        update={"stages": tuple(stage.model_copy(update={"moments": "bfloat16"}) for stage in plain.stages)}
    )
    one = 12 * FOUNDATIONS[PRESET].trained / 1e9
    assert needed_gigabytes(kept) == pytest.approx(needed_gigabytes(plain) + one)
    assert needed_gigabytes(short) == pytest.approx(needed_gigabytes(plain) - 3 * one / 3)
    assert needed_gigabytes(build("tiny", workspace=tmp_path, tracking_uri="")) == 0


def test_looking_imports_no_torch() -> None:
    code = "import sys, kiwi.model.foundation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
