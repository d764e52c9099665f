"""Conversion between our folders and the authors' formats: byte for byte, or refused with a list."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from kiwi.cli.model import app
from kiwi.configuration import ModelSettings
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.errors import KiwiError, UsageError
from kiwi.model.additions import Additions
from kiwi.model.checkpoint import load_model, save_model
from kiwi.model.conversion import convert
from kiwi.model.editor import KiwiEditModel
from kiwi.model.errors import ModelError
from kiwi.model.released import context_names, transformer_names
from kiwi.model.start import new_editor
from tests.unit.model.released_files import Released

Tensors = dict[str, torch.Tensor]


def additions(released: Released) -> Additions:
    return Additions(mllm=released.mllm, vae=released.vae, transformer=released.transformer)


@pytest.fixture(scope="module")
def ours(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder made of the training checkpoint."""
    folder = tmp_path_factory.mktemp("ours") / "model"
    convert(released.checkpoint, folder, additions=additions(released))
    return folder


@pytest.fixture(scope="module")
def from_repository(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder made of the diffusers repository."""
    folder = tmp_path_factory.mktemp("ours") / "model"
    convert(released.repository, folder, additions=Additions(vae=released.vae))
    return folder


def changed(released: Released, folder: Path, change: Callable[[Tensors], object]) -> Path:
    tensors = load_file(released.checkpoint)
    change(tensors)
    save_file(tensors, folder / "changed.safetensors")
    return folder / "changed.safetensors"


def test_a_training_checkpoint_comes_back_byte_for_byte(released: Released, ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "again.safetensors", "training")
    assert (tmp_path / "again.safetensors").read_bytes() == released.checkpoint.read_bytes()


def test_a_converted_checkpoint_loads_with_its_own_values(released: Released, ours: Path) -> None:
    model = load_model(ours)
    checkpoint = load_file(released.checkpoint)
    for module, names in ((model.transformer, transformer_names), (model.context_encoder, context_names)):
        held = module.state_dict()
        assert all(torch.equal(held[name], tensor) for name, tensor in names(checkpoint).items())
    assert model.context_encoder.closing_tokens
    assert "describe the content of the image" in model.context_encoder.template.system
    assert model.codec.channels == 8


@pytest.mark.parametrize("prefix", ["pipe.", "bare"])
def test_checkpoints_come_with_other_prefixes_too(released: Released, ours: Path, tmp_path: Path, prefix: str) -> None:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            bare = prefix == "bare" and name.startswith("dit.")
            tensors[name.removeprefix("dit.") if bare else f"pipe.{name}"] = tensors.pop(name)

    source = changed(released, tmp_path, rename)
    convert(source, tmp_path / "model", additions=additions(released))
    assert (tmp_path / "model/transformer/diffusion_pytorch_model.safetensors").read_bytes() == (
        ours / "transformer/diffusion_pytorch_model.safetensors"
    ).read_bytes()
    convert(tmp_path / "model", tmp_path / "back.safetensors", "training")
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


def test_a_repository_comes_back_byte_for_byte(released: Released, from_repository: Path, tmp_path: Path) -> None:
    convert(from_repository, tmp_path / "again", "diffusers", Additions(vae=released.repository / "vae"))
    for path in sorted(released.repository.rglob("*")):
        if path.is_file() and path.suffix != ".py":
            again = tmp_path / "again" / path.relative_to(released.repository)
            assert again.read_bytes() == path.read_bytes(), path.name
    assert not list((tmp_path / "again").rglob("*.py"))


def test_a_repository_loads_with_its_constants(from_repository: Path) -> None:
    model = load_model(from_repository)
    assert model.reference_position == "first"
    assert (model.vision.frames, model.vision.frame_pixels, model.vision.reference_tokens) == (16, 120000, 16)
    assert not [name for name, _ in model.named_parameters() if "lora_" in name]


def test_adapters_are_merged_on_the_way_to_a_repository(released: Released, ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "repository", "diffusers", Additions(vae=released.repository / "vae"))
    plain, merged = (
        load_file(released.mllm / "model.safetensors"),
        load_file(tmp_path / "repository/mllm_encoder/model.safetensors"),
    )
    lora = load_file(released.checkpoint)
    adapted = [name for name in plain if not torch.equal(plain[name], merged[name])]
    assert len(adapted) == 8
    name = "mllm.model.model.language_model.layers.1.self_attn.o_proj.lora_"
    product = lora[f"{name}B.default.weight"] @ lora[f"{name}A.default.weight"]
    target = "model.layers.1.self_attn.o_proj.weight"
    assert torch.allclose(merged[target], plain[target] + product, atol=1e-6)
    convert(tmp_path / "repository", tmp_path / "model", additions=Additions(vae=released.vae))
    with pytest.raises(ModelError, match="merged"):
        convert(tmp_path / "model", tmp_path / "x.safetensors", "training")


def test_an_editor_that_was_never_foreign_can_be_written_too(released: Released, ours: Path, tmp_path: Path) -> None:
    model = load_model(ours)
    with torch.no_grad():
        model.context_encoder.queries["video"].add_(1)
    save_model(model, tmp_path / "trained", "# card\n")
    assert not (tmp_path / "trained" / "origin.json").exists()
    convert(tmp_path / "trained", tmp_path / "trained.safetensors", "training")
    before, after = load_file(released.checkpoint), load_file(tmp_path / "trained.safetensors")
    assert before.keys() - after.keys() == {
        f"dit.text_embedding.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }
    assert [name for name in after if not torch.equal(before[name], after[name])] == ["mllm.video_queries.q"]


@pytest.mark.parametrize("to", ["training", "diffusers"])
def test_a_tiny_model_is_not_written_for_code_that_has_no_such_codec(
    tmp_path: Path, to: Literal["training", "diffusers"]
) -> None:
    save_model(new_editor(ModelSettings(), ["Make it blue."]), tmp_path / "tiny", "# card\n")
    with pytest.raises(ModelError, match="tiny is a tiny model"):
        convert(tmp_path / "tiny", tmp_path / "out", to)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_checkpoint_of_stage_1_takes_the_rest_from_a_start(released: Released, ours: Path, tmp_path: Path) -> None:
    def first_stage(tensors: Tensors) -> None:
        for name in list(tensors):
            if not name.startswith(("mllm.image_queries", "mllm.connetor", "mllm.model")):
                del tensors[name]
        tensors["mllm.image_queries.q"] += 1

    source = changed(released, tmp_path, first_stage)
    with pytest.raises(ModelError, match=r"missing.*dit\.blocks"):
        convert(source, tmp_path / "model", additions=additions(released))
    convert(source, tmp_path / "model", additions=Additions(start=ours))
    model, start = load_model(tmp_path / "model"), load_model(ours)
    different = [n for n, t in model.state_dict().items() if not torch.equal(t, start.state_dict()[n])]
    assert different == ["context_encoder.queries.image"]
    convert(tmp_path / "model", tmp_path / "back.safetensors", "training")
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


def unknown(tensors: Tensors) -> None:
    tensors["dit.blocks.0.self_attn.q.lora_A.default.weight"] = torch.zeros(2, 48)
    tensors["somewhere.else"] = torch.zeros(1)


def missing(tensors: Tensors) -> None:
    del tensors["dit.blocks.1.ffn.2.bias"], tensors["mllm.ref_connector.2.weight"]


def mis_shaped(tensors: Tensors) -> None:
    tensors["vae_condition.patch_embedding.weight"] = torch.zeros(48, 4, 1, 2, 2)
    tensors["mllm.video_queries.q"] = torch.zeros(6, 32)


def another_model(tensors: Tensors) -> None:
    tensors.clear()
    tensors["unet.down.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (unknown, ["2 unknown", "somewhere.else", "self_attn.q.lora_A"]),
        (missing, ["2 missing", "dit.blocks.1.ffn.2.bias", "mllm.ref_connector.2.weight"]),
        (
            mis_shaped,
            ["2 mis-shaped", "vae_condition.patch_embedding.weight is [48, 4, 1, 2, 2], not [48, 8, 1, 2, 2]"],
        ),
        (another_model, ["1 unknown", "unet.down.weight"]),
    ],
)
def test_what_does_not_fit_is_listed_and_refused(
    released: Released, tmp_path: Path, change: Callable[[Tensors], object], said: list[str]
) -> None:
    source = changed(released, tmp_path, change)
    with pytest.raises(ModelError) as error:
        convert(source, tmp_path / "model", additions=additions(released))
    assert all(words in error.value.message for words in said), error.value.message
    assert "\n" not in error.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed.safetensors"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def as_pickle(path: Path) -> None:
    path.unlink()
    torch.save({"x": torch.zeros(1)}, path.with_suffix(".bin"))


@pytest.mark.parametrize(
    "part",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "mllm_encoder/diffusion_pytorch_model.safetensors",
        "mllm_encoder/model.safetensors",
        "ref_embedder/diffusion_pytorch_model.safetensors",
    ],
)
@pytest.mark.parametrize("damage", [truncate, as_pickle, Path.unlink])
def test_a_damaged_repository_is_one_clear_line(
    released: Released, tmp_path: Path, part: str, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(released.repository, tmp_path / "repository")
    damage(tmp_path / "repository" / part)
    with pytest.raises(ModelError) as error:
        convert(tmp_path / "repository", tmp_path / "model", additions=Additions(vae=released.vae))
    assert Path(part).stem in error.value.message
    assert "\n" not in error.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_truncated_checkpoint_and_a_pickle_are_refused(released: Released, tmp_path: Path) -> None:
    (tmp_path / "short.safetensors").write_bytes(released.checkpoint.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"short\.safetensors is damaged"):
        convert(tmp_path / "short.safetensors", tmp_path / "model", additions=additions(released))
    for name in ("x.pth", "x.bin", "x.ckpt"):
        torch.save({"x": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(ModelError, match="pickle"):
            convert(tmp_path / name, tmp_path / "model", additions=additions(released))
    torch.save({"x": torch.zeros(1)}, tmp_path / "hidden.safetensors")
    with pytest.raises(ModelError, match="no safetensors file"):
        convert(tmp_path / "hidden.safetensors", tmp_path / "model", additions=additions(released))
    assert not (tmp_path / "model").exists()


def test_nothing_that_is_there_is_overwritten(released: Released, ours: Path, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    place.write_text("mine")
    for source, to in ((released.checkpoint, None), (ours, "training")):
        with pytest.raises(ModelError, match="nothing is overwritten"):
            convert(source, place, to, additions(released))  # type: ignore[arg-type]
    assert place.read_text() == "mine"


def test_an_autoencoder_of_another_model_is_refused(released: Released, tmp_path: Path) -> None:
    shutil.copytree(released.vae, tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps(config | {"z_dim": 16}))
    with pytest.raises(ModelError, match="has 16 channels, the transformer 8"):
        convert(released.repository, tmp_path / "model", additions=Additions(vae=tmp_path / "vae"))
    with pytest.raises(ModelError, match="not the stock AutoencoderKLWan"):
        convert(released.repository, tmp_path / "model", additions=Additions(vae=released.repository / "vae"))


def test_the_way_to_a_repository_takes_the_authors_own_autoencoder(
    from_repository: Path, released: Released, tmp_path: Path
) -> None:
    for vae, said in (
        (None, "names of its own"),
        (released.vae, "holds the stock autoencoder"),
        (tmp_path, "config.json"),
    ):
        with pytest.raises(ModelError, match=said):
            convert(from_repository, tmp_path / "out", "diffusers", Additions(vae=vae))
    assert not (tmp_path / "out").exists()


def test_what_a_source_lacks_is_asked_for_by_option(released: Released, tmp_path: Path) -> None:
    for given, wanted in (
        (Additions(), "--mllm"),
        (Additions(mllm=released.mllm), "--vae"),
        (Additions(mllm=released.mllm, vae=released.vae), "--transformer"),
    ):
        with pytest.raises(ModelError) as error:
            convert(released.checkpoint, tmp_path / "model", additions=given)
        assert wanted in error.value.remedy


def test_an_ablation_has_no_place_in_the_authors_formats(tmp_path: Path, released: Released) -> None:
    save_model(
        new_editor(ModelSettings(preset="middle", source_scaling="learned"), ["remove it"]), tmp_path / "learned", ""
    )
    for to in ("training", "diffusers"):
        with pytest.raises(ModelError, match="conditioned otherwise"):
            convert(tmp_path / "learned", tmp_path / "out", to, Additions(vae=released.vae))  # type: ignore[arg-type]


def test_formats_that_lead_nowhere_are_wrong_use(ours: Path, released: Released, tmp_path: Path) -> None:
    for source, to in (
        (ours, None),
        (ours, "kiwi"),
        (released.checkpoint, "training"),
        (released.repository, "diffusers"),
    ):
        with pytest.raises(UsageError):
            convert(source, tmp_path / "out", to)  # type: ignore[arg-type]


def test_a_new_editor_is_made_of_foundation_weights(middle_model: KiwiEditModel, tmp_path: Path) -> None:
    """The middle size stands in for Wan-AI's repositories, which cannot be had here."""
    backbone = tmp_path / "wan"
    save_model(middle_model, tmp_path / "middle", "")
    shutil.copytree(tmp_path / "middle" / "vae", backbone / "vae")
    stock = type(middle_model.transformer).from_config(middle_model.transformer.config)
    stock.save_pretrained(backbone / "transformer")
    (backbone / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    convert(backbone, tmp_path / "new", additions=Additions(mllm=tmp_path / "middle" / "mllm"))
    new = load_model(tmp_path / "new")
    assert new.name == "middle"
    assert torch.equal(
        new.transformer.patch_embedding.base.weight.float(), stock.patch_embedding.weight.bfloat16().float()
    )
    assert not new.transformer.patch_embedding.source.weight.any()
    clip = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    edits = KiwiEditPipeline(new, frames=5, side=64).edit_clips([clip], ["use it"], [clip[0]], num_inference_steps=1)
    assert edits[0].shape == clip.shape


def test_the_command_converts_and_reports(released: Released, tmp_path: Path) -> None:
    run = CliRunner()
    options = ["--mllm", str(released.mllm), "--vae", str(released.vae), "--transformer", str(released.transformer)]
    done = run.invoke(app, ["convert", str(released.checkpoint), str(tmp_path / "model"), *options, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["destination_format"] == "kiwi"
    back = run.invoke(app, ["convert", str(tmp_path / "model"), str(tmp_path / "b.safetensors"), "--to", "training"])
    assert back.exit_code == 0, back.output
    assert (tmp_path / "b.safetensors").read_bytes() == released.checkpoint.read_bytes()
    wrong = run.invoke(app, ["convert", str(released.checkpoint), str(tmp_path / "y"), "--to", "onnx"])
    assert isinstance(wrong.exception, KiwiError)
