"""`kiwi model convert`: between our model folders and the authors' training checkpoints and diffusers repositories.

Nothing is loaded into a model: tensors keep their bytes and change their names. What does not fit is listed and
refused before anything is written, and nothing is overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kiwi.errors import UsageError
from kiwi.model.additions import CHECKPOINT, Additions, card
from kiwi.model.checkpoint import CLASS, INDEX, save_model, written_whole
from kiwi.model.errors import ModelError
from kiwi.model.folders import read_json, refuse_pickle

Format = Literal["kiwi", "training", "diffusers", "foundation"]
FORMATS: dict[Format, str] = {
    "kiwi": "a model folder of ours",
    "training": "the authors' training checkpoint, one safetensors file",
    "diffusers": "the authors' diffusers repository, a folder",
    "foundation": "released weights of Wan, a diffusers folder: a new, untrained editor is made of them",
}


@dataclass(frozen=True)
class Conversion:
    """What was done. `notes` are for people."""

    source: Path
    source_format: Format
    destination: Path
    destination_format: Format
    tensors: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": str(self.source),
            "source_format": self.source_format,
            "destination": str(self.destination),
            "destination_format": self.destination_format,
            "tensors": self.tensors,
            "notes": list(self.notes),
        }


def convert(
    source: Path, destination: Path, to: Format | None = None, additions: Additions | None = None
) -> Conversion:
    """Converts a model; the destination appears whole or not at all.

    Args:
        to: the format to write; None: ours from a foreign one.

    Raises:
        UsageError: formats that cannot be converted into each other.
        ModelError: a source that is damaged, pickled, another model's or incomplete; a destination that is there.
    """
    additions = additions or Additions()
    found = format_of(source)
    wanted = to or ("kiwi" if found != "kiwi" else None)
    if wanted is None:
        raise UsageError(f"{source} is {FORMATS[found]}, and no format to write is named", "--to training or diffusers")
    if (found == "kiwi") == (wanted == "kiwi"):
        raise UsageError(
            f"{source} is {FORMATS[found]}: it cannot be written as {FORMATS[wanted]}",
            "--to training or --to diffusers for a folder of ours, --to kiwi for the others",
        )
    if found == "kiwi" and (source / "codec").is_dir():
        raise ModelError(
            f"{source} is a tiny model, whose transform the authors' code has not: it could not be converted back",
            "train with a preset that has an autoencoder, such as middle, to convert",
        )
    if wanted == "foundation":
        raise UsageError("foundation weights are a source only", "--to kiwi, training or diffusers")
    with written_whole(destination, file=CHECKPOINT if wanted == "training" else "") as temporary:
        tensors, notes = _written(source, found, temporary, wanted, additions)
    return Conversion(source, found, destination, wanted, tensors, tuple(notes))


def _written(source: Path, found: Format, out: Path, wanted: Format, additions: Additions) -> tuple[int, list[str]]:
    """Writes into the folder `out`. Returns (tensors, notes)."""
    from kiwi.model import repository_format, training_format

    if found == "training":
        return training_format.read(source, out, additions)
    if found == "diffusers":
        return repository_format.read(source, out, additions)
    if found == "foundation":
        return _new_editor(source, out, additions)
    if wanted == "training":
        return training_format.write(source, out)
    return repository_format.write(source, out, additions)


def format_of(source: Path) -> Format:
    """What a file or folder is. Raises ModelError for what can be none of them."""
    if source.is_file():
        refuse_pickle(source)
        if source.suffix != ".safetensors":
            raise ModelError(f"{source} is no safetensors file", "give a checkpoint that ends in .safetensors")
        return "training"
    if not source.is_dir():
        raise ModelError(f"{source} does not exist", "give a checkpoint or a model folder")
    if not (source / INDEX).is_file():
        raise ModelError(f"{source} is no model folder: it has no {INDEX}", "give the folder that holds it, or a file")
    named = read_json(source / INDEX)
    said = named.get("_class_name")
    if said == CLASS and "prompt" in named:
        return "kiwi"
    if CLASS in (said if isinstance(said, list) else [said]):
        return "diffusers"
    if isinstance(said, str) and said.startswith("Wan"):
        return "foundation"
    raise ModelError(f"{source} holds a {said!r}, which is no editor", f"give {', or '.join(FORMATS.values())}")


def _new_editor(source: Path, out: Path, additions: Additions) -> tuple[int, list[str]]:
    """A new editor on foundation weights."""
    from kiwi.model.conditioning import Conditioning
    from kiwi.model.wan import from_foundation, name_of

    if additions.mllm is None:
        raise ModelError(f"{source} has no language model", "--mllm FOLDER of Qwen2.5-VL")
    name = name_of(read_json(source / "transformer" / "config.json"))
    if name is None:
        raise ModelError(
            f"{source} has a transformer of no size that is known here", "give Wan2.2-TI2V-5B or Wan2.1-T2V-14B"
        )
    conditioning = Conditioning(reference_position="first" if additions.reference_first else "last")
    model = from_foundation(name, source, additions.mllm, conditioning=conditioning)
    out.rmdir()
    save_model(model, out, card(name, str(source), "foundation weights; what Kiwi-Edit adds to them is untrained"))
    return len(model.state_dict()), ["queries and adapters are random, and the added layers zero: train it first"]
