"""Model folders that are damaged, another model's or made to do harm: one line each, and nothing is run or built."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kiwi.model.checkpoint import load_model, save_model
from kiwi.model.editor import KiwiEditModel
from kiwi.model.errors import ModelError

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SHARDS = "transformer/diffusion_pytorch_model.safetensors.index.json"
Damage = Callable[[Path], Any]


@pytest.fixture(scope="session")
def whole(tiny_model: KiwiEditModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_model(tiny_model, folder, "")
    return folder


def index(**changes: object) -> Damage:
    return written("model_index.json", **changes)


def written(name: str, **changes: object) -> Damage:
    def damage(folder: Path) -> None:
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(said | changes))

    return damage


def header(name: str, length: int, content: bytes = b"{}") -> Damage:
    return lambda folder: (folder / name).write_bytes(struct.pack("<Q", length) + content)


def sharded(name: str, weight_map: object) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).with_name((folder / name).name.removesuffix(".index.json")).unlink()
        (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return damage


def pickled(folder: Path) -> None:
    (folder / "mllm" / "model.safetensors").unlink()
    torch.save({}, folder / "mllm" / "pytorch_model.bin")


OVERFLOWING = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**30], "data_offsets": [0, 4]}}).encode()
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a header of 2^62 bytes": (header(WEIGHTS, 2**62), "damaged"),
    "a header longer than the file": (header("mllm/model.safetensors", 90 << 20), "damaged"),
    "a shape beyond all memory": (header(WEIGHTS, len(OVERFLOWING), OVERFLOWING), "damaged"),
    "an empty file": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "damaged"),
    "a pickle named safetensors": (lambda folder: torch.save({}, folder / WEIGHTS), "damaged"),
    "pickles alone": (pickled, "is a pickle"),
    "a foreign class": (index(transformer=["os", "system"]), r"wants \['os', 'system'\] for transformer"),
    "a path as a part": (index(mllm="../../elsewhere"), "wants '../../elsewhere' for mllm"),
    "shards that escape": (sharded(SHARDS, {"a": "../../../etc/passwd"}), "outside its folder"),
    "shards of the language model that escape": (
        sharded("mllm/model.safetensors.index.json", {"a": "../connectors/model.safetensors"}), "outside its folder",
    ),
    "shards that are pickles": (sharded(SHARDS, {"a": "weights.bin"}), "is a pickle"),
    "shards that are no names": (sharded(SHARDS, [1]), "no weight_map"),
    "JSON without an end": (lambda folder: (folder / "model_index.json").write_text("[" * 100_000), "not valid JSON"),
    "a list for an index": (lambda folder: (folder / "model_index.json").write_text("[]"), "holds a list"),
    "an unknown conditioning": (index(conditioning={"source_scaling": "cubic"}), "no source_scaling 'cubic'"),
    "no prompt": (index(prompt=None), "says prompt: None"),
    "a prompt of 10^13 queries": (index(prompt={"system": "", "queries": {"image": 10**13}}), "no prompt"),
    "vision of 10^9 frames": (index(vision={"rule": "square", "frames": 10**9, "side": 56}), "frames of the vision"),
    "vision of no patches": (index(vision={"rule": "square", "frames": 2, "side": 7}), "no multiple of 28"),
    "adapters of a negative rank": (index(lora={"rank": -1, "alpha": 1}), "cannot be loaded"),
    "another language model": (written("mllm/config.json", model_type="gpt2"), "holds a 'gpt2'"),
    "a million layers": (written("transformer/config.json", num_layers=10**6), "says 1000000 layers, .* have 3"),
    "no heads": (written("transformer/config.json", num_attention_heads=0), "cannot be loaded"),
    "another transformer": (written("transformer/config.json", _class_name="UNet"), "holds a 'UNet'"),
    "no tokenizer": (lambda folder: (folder / "mllm" / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    "a broken tokenizer": (lambda folder: (folder / "mllm" / "tokenizer.json").write_text("{}"), "the tokenizer in"),
    "a codec of another table": (
        lambda folder: (folder / "codec" / "config.json").write_text('{"table": {"first": {}}}'), "no codec",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_hostile_folder_is_one_line_and_a_remedy(whole: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    harm, said = DAMAGES[damage]
    harm(folder)
    with pytest.raises(ModelError, match=said) as error:
        load_model(folder)
    assert "\n" not in error.value.message
    assert error.value.remedy


def test_a_tokenizer_s_own_code_is_never_run(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / "mllm" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    written("mllm/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")(
        folder
    )
    written("mllm/config.json", auto_map={"AutoModel": "evil.Evil"})(folder)
    with contextlib.suppress(ModelError):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_not_there_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gone is no folder"):
        load_model(tmp_path / "gone")
