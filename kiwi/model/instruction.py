"""How an instruction, its video and its reference become one token sequence for the multimodal language model.

The layout is that of the released weights: system prompt; then in the user's turn the video (or image), the
instruction, the reference image, and the placeholders that the learnable queries replace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Mode = Literal["image", "video", "reference"]
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

    def text(self, instruction: str, mode: Mode, visual: VisionGrid, reference: VisionGrid | None, merge: int) -> str:
        pad = "<|image_pad|>" if mode == "image" else "<|video_pad|>"
        said = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system else ""
        said += f"<|im_start|>user\n<|vision_start|>{pad * visual.tokens(merge)}<|vision_end|>"
        said += instruction + (REFERENCE_HINT if reference is not None and self.hint else "")
        if reference is not None:
            said += f"<|vision_start|>{'<|image_pad|>' * reference.tokens(merge)}<|vision_end|>"
        return said + QUERY_TOKEN * self.queries[mode] + "<|im_end|>\n"


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

    Args:
        tokenizer: a transformers tokenizer that knows Qwen2.5-VL's special tokens.
        mllm: the Qwen2.5-VL model, for its token numbers and its merging.
        visual, reference: grids of the source and of the reference image.
    """
    merge = mllm.config.vision_config.spatial_merge_size
    text = template.text(instruction, mode, visual, reference, merge)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
    positions = rope_positions(ids, mllm.config, visual, reference)
    return Prompt(ids, positions, mode, reference.tokens(merge) if reference is not None else 0)


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
