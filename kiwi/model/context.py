"""The context encoder: a multimodal language model, learnable queries, and the two connectors (paper, section 4.1)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from kiwi.model.instruction import QUERY_TOKEN, Mode, PromptBatch, PromptTemplate, VisionGrid

TAIL = 2  # tokens after the queries: <|im_end|> and a line feed


class Connector(nn.Sequential):
    """Linear, GELU(tanh), Linear; the last layer starts at zero, so a new editor ignores its context."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs), nn.GELU(approximate="tanh"), nn.Linear(outputs, outputs))
        last = cast(nn.Linear, self[2])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


class ContextEncoder(nn.Module):
    """Turns a video, an instruction and a reference into context tokens for the transformer's cross-attention.

    Args:
        mllm: a `Qwen2_5_VLForConditionalGeneration`.
        tokenizer: its tokenizer.
        template: the prompt's constants; `template.queries` gives the number of queries by mode.
        width: the transformer's inner dimension.
        closing_tokens: take the last N hidden states of the sequence, closing tokens included and the first two
            queries left out, as the released weights were trained; False takes the queries' own states.
        reference_features: whether the reference's own states join the context (the paper's dual connector); without
            them there is no second connector, and the queries alone speak of the reference (table 5).
    """

    def __init__(
        self,
        mllm: Any,
        tokenizer: Any,
        template: PromptTemplate,
        width: int,
        closing_tokens: bool = False,
        reference_features: bool = True,
    ) -> None:
        super().__init__()
        hidden = mllm.config.text_config.hidden_size
        self.mllm = mllm
        self.tokenizer = tokenizer
        self.template = template
        self.closing_tokens = closing_tokens
        self.query_token = int(tokenizer.convert_tokens_to_ids(QUERY_TOKEN))
        self.queries = nn.ParameterDict(
            {mode: nn.Parameter(torch.randn(count, hidden) * 0.02) for mode, count in template.queries.items()}
        )
        self.query_connector = Connector(hidden, width)
        self.reference_features = reference_features
        if reference_features:
            self.reference_connector = Connector(hidden, width)

    def vision_tokens(self, pixels: Tensor, grid: VisionGrid, kind: str) -> Tensor:
        """Merged vision tokens of a batch of equal inputs.

        Args:
            pixels: flattened patches as Qwen's image processor makes them, [B, patches, 3·2·14·14].
            grid: the grid of one input.
            kind: "image" or "video".

        Returns:
            [B, tokens, hidden].
        """
        grids = torch.tensor([[grid.frames, grid.height, grid.width]] * len(pixels), device=pixels.device)
        features = self.mllm.model.visual(pixels.flatten(0, 1), grid_thw=grids).pooler_output
        return cast(Tensor, features.reshape(len(pixels), -1, features.shape[-1]))

    def forward(self, prompts: PromptBatch, visual: Tensor, reference: Tensor | None = None) -> Tensor:
        """Context tokens of a batch.

        Args:
            visual: merged tokens of the source, [B, V, hidden].
            reference: merged tokens of the reference, [B, R, hidden], in reference mode.

        Returns:
            [B, R + N, width]: the reference features first (where the encoder gives them), then the query features.
        """
        config, device = self.mllm.config, visual.device
        ids = prompts.input_ids.to(device)
        embeddings = self.mllm.get_input_embeddings()(ids)
        seen = visual if reference is None else torch.cat([visual, reference], dim=1)
        is_vision = (ids == config.image_token_id) | (ids == config.video_token_id)
        embeddings = embeddings.masked_scatter(is_vision[..., None], seen.to(embeddings.dtype))
        bank = self.queries[prompts.mode].to(embeddings.dtype)
        is_query = ids == self.query_token
        embeddings = embeddings.masked_scatter(is_query[..., None], bank.expand(len(ids), -1, -1))
        states = self.mllm.model.language_model(
            inputs_embeds=embeddings,
            position_ids=prompts.position_ids.to(device),
            attention_mask=prompts.attention_mask.to(device),
            use_cache=False,
        ).last_hidden_state
        count = len(bank)
        queries = states[:, -count:] if self.closing_tokens else states[:, -count - TAIL : -TAIL]
        precision = self.query_connector[0].weight.dtype
        context = self.query_connector(queries.to(precision))
        if reference is None or not self.reference_features:
            return cast(Tensor, context)
        end = states.shape[1] - TAIL - count - 1  # before the queries stands <|vision_end|>
        features = self.reference_connector(states[:, end - prompts.reference_tokens : end].to(precision))
        return torch.cat([features, context], dim=1)

    def copy_queries(self, origin: Mode, destination: Mode) -> None:
        """Starts one bank of queries where another has come to, as far as both reach."""
        with torch.no_grad():
            count = min(len(self.queries[origin]), len(self.queries[destination]))
            self.queries[destination][:count] = self.queries[origin][:count]


def patches(frames: Tensor, patch: int = 14, merge: int = 2) -> tuple[Tensor, VisionGrid]:
    """What Qwen2-VL's image processor does to frames that already have the right size, batched.

    Args:
        frames: uint8 [B, T, H, W, 3]; one frame is doubled, an odd number is filled with its last.

    Returns:
        float32 [B, patches, 3·2·14·14] and the grid of one input.
    """
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]) * 255
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]) * 255
    if frames.shape[1] % 2:
        frames = torch.cat([frames, frames[:, -1:]], dim=1)
    batch, length, height, width, _ = frames.shape
    grid = VisionGrid(length // 2, height // patch, width // patch)
    values = (frames.float() - mean) / deviation
    cut = values.reshape(
        batch, grid.frames, 2, grid.height // merge, merge, patch, grid.width // merge, merge, patch, 3
    )
    cut = cut.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return cut.reshape(batch, grid.frames * grid.height * grid.width, -1), grid
