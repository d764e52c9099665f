"""How an instruction, its video and its reference become one token sequence for the multimodal language model.

The layout is that of the released weights: system prompt; then in the user's turn the video (or image), the
instruction, the reference image, and the placeholders that the learnable queries replace.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kiwi.model.errors import ModelError

Mode = Literal["image", "video", "reference"]
MOST_QUERIES = 4096  # of one mode; the released weights have 768
QUERY_TOKEN = "<|object_ref_start|>"
REFERENCE_HINT = " Use the reference input from last frame."


@dataclass(frozen=True)
class VisionGrid:
    """Patches of one vision input before merging: temporal, height, width."""

    frames: int
    height: int
    width: int

    def tokens(self, merge: int) -> int:
        return self.frames * self.height * self.width // (merge * merge)


@dataclass(frozen=True)
class Prompt:
    """One tokenised sequence.

    Attributes:
        input_ids: int64 [L].
        position_ids: int64 [3, L], the multimodal rotary positions.
        mode: which bank of queries it asks for.
        reference_tokens: merged tokens of the reference, 0 without one.
    """

    input_ids: Tensor
    position_ids: Tensor
    mode: Mode
    reference_tokens: int


@dataclass(frozen=True)
class PromptTemplate:
    """Constants of a checkpoint: its system prompt, the number of queries by mode, and whether the hint is said."""

    system: str
    queries: dict[str, int]
    hint: bool = True

    def __post_init__(self) -> None:
        """Raises ModelError for constants that no weights have, such as a damaged folder may say."""
        counts = [self.queries.get(mode) for mode in get_args(Mode)] if isinstance(self.queries, dict) else [None]
        if not isinstance(self.system, str) or not all(isinstance(n, int) and 0 < n <= MOST_QUERIES for n in counts):
            raise ModelError(f"no prompt: {self.system!r} with queries {self.queries!r}", "restore the model's folder")

    def text(
        self, instruction: str, mode: Mode, visual: VisionGrid, reference: VisionGrid | None, merge: int
    ) -> tuple[str, str, str]:
        """What stands before the instruction, the instruction with its hint, and what stands after it."""
        pad = "<|image_pad|>" if mode == "image" else "<|video_pad|>"
        said = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system else ""
        said += f"<|im_start|>user\n<|vision_start|>{pad * visual.tokens(merge)}<|vision_end|>"
        wanted = instruction + (REFERENCE_HINT if reference is not None and self.hint else "")
        after = ""
        if reference is not None:
            after = f"<|vision_start|>{'<|image_pad|>' * reference.tokens(merge)}<|vision_end|>"
        return said, wanted, after + QUERY_TOKEN * self.queries[mode] + "<|im_end|>\n"


def tokenise(
    template: PromptTemplate,
    tokenizer: Any,
    mllm: Any,
    instruction: str,
    mode: Mode,
    visual: VisionGrid,
    reference: VisionGrid | None = None,
) -> Prompt:
    """Builds one prompt.

    A special token that stands in the instruction is read as its letters: `<|object_ref_start|>` or `<|im_end|>` in
    it moves no query and ends no turn.

    Args:
        tokenizer: a transformers tokenizer that knows Qwen2.5-VL's special tokens.
        mllm: the Qwen2.5-VL model, for its token numbers and its merging.
        visual, reference: grids of the source and of the reference image.
    """
    merge = mllm.config.vision_config.spatial_merge_size
    before, wanted, after = template.text(instruction, mode, visual, reference, merge)
    pieces = [before, *_plain_pieces(wanted, tokenizer)]
    pieces[-1] += after
    numbers = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
    ids = torch.tensor([number for piece in numbers for number in piece], dtype=torch.long)
    positions = rope_positions(ids, mllm.config, visual, reference)
    return Prompt(ids, positions, mode, reference.tokens(merge) if reference is not None else 0)


def _plain_pieces(said: str, tokenizer: Any) -> list[str]:
    """The text, cut inside of every special token that stands in it, so that none is recognised."""
    found = [token for token in tokenizer.get_added_vocab() if token in said]
    if not found:
        return [said]
    places = re.finditer("|".join(f"(?={re.escape(token)})" for token in found), said)
    cuts = [0, *sorted({place.start() + 1 for place in places}), len(said)]
    return [said[start:end] for start, end in itertools.pairwise(cuts)]


def rope_positions(ids: Tensor, config: Any, visual: VisionGrid, reference: VisionGrid | None) -> Tensor:
    """The multimodal rotary positions (time, row, column) of one sequence. int64 [3, L].

    What follows a vision input goes on after its *largest* position, as in the transformers version that the released
    weights were trained with. From 5.0 on, `get_rope_index` goes on after its longer side, which differs for every
    clip that has more time steps than rows and columns; and it takes the seconds a step from the clip, where the
    weights always saw one second.
    """
    merge, pace = config.vision_config.spatial_merge_size, config.vision_config.tokens_per_second
    is_video = ids == config.video_token_id
    is_vision = (is_video | (ids == config.image_token_id)).tolist()
    grids = [visual] if reference is None else [visual, reference]
    parts: list[Tensor] = []
    place = following = 0
    while place < len(ids):
        if is_vision[place]:
            grid = grids.pop(0)
            time = torch.arange(grid.frames) * (pace if bool(is_video[place]) else 1)
            axes = (time, torch.arange(grid.height // merge), torch.arange(grid.width // merge))
            part = torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1)
        else:
            end = is_vision.index(True, place) if True in is_vision[place:] else len(ids)
            part = torch.arange(end - place).expand(3, -1)
        parts.append(part + following)
        place += part.shape[1]
        following = int(parts[-1].max()) + 1
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one mode, padded on the left so that queries and reference stand at the same places from the end.

    Attributes:
        input_ids, attention_mask: int64 [B, L].
        position_ids: int64 [3, B, L].
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    mode: Mode
    reference_tokens: int


def collate(prompts: list[Prompt], pad: int) -> PromptBatch:
    """Pads prompts of the same mode and reference size. Raises ValueError where they differ."""
    first = prompts[0]
    if any((p.mode, p.reference_tokens) != (first.mode, first.reference_tokens) for p in prompts):
        raise ValueError("prompts of one batch must agree in mode and in reference size")
    length = max(len(p.input_ids) for p in prompts)
    ids = torch.full((len(prompts), length), pad, dtype=torch.long)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    positions = torch.zeros((3, len(prompts), length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt.input_ids)
        ids[row, start:] = prompt.input_ids
        mask[row, start:] = 1
        positions[:, row, start:] = prompt.position_ids
    return PromptBatch(ids, mask, positions, first.mode, first.reference_tokens)
