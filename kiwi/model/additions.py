"""What the formats of `kiwi model convert` share: what a source lacks, the file's name meanwhile, the card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = "checkpoint.safetensors"  # while it is written


@dataclass(frozen=True)
class Additions:
    """What a source does not hold itself.

    Attributes:
        mllm: a folder of Qwen2.5-VL with its tokenizer.
        vae: a folder of the stock `AutoencoderKLWan`; on the way to the authors' repositories, their own `vae/`.
        transformer: a folder of the stock transformer: its configuration, and its weights where the source has none.
        start: one of our model folders, for every part that neither the source nor the folders above have.
        reference_first: whether a training checkpoint was trained with reference frames before the video.
    """

    mllm: Path | None = None
    vae: Path | None = None
    transformer: Path | None = None
    start: Path | None = None
    reference_first: bool = False


def card(name: str, source: str, what: str) -> str:
    """README.md of a converted folder."""
    return (
        f"# {name}, converted\n\nAn editor in Kiwi-Edit's architecture (arXiv 2603.02175): {what}.\n\n"
        f"- converted from `{Path(source).name}` by `kiwi model convert`; no tensor was changed\n"
        "- its licence is that of the weights it was made of; look there before you use or share it\n"
    )
