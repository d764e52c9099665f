"""The editor: a stock Wan transformer with composite patch embedding, a context encoder, and a latent codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from kiwi.model.attention import MatmulAttention
from kiwi.model.codec import LatentCodec
from kiwi.model.conditioning import CompositePatchEmbedding, ReferencePosition, drop_reference, pack
from kiwi.model.context import ContextEncoder
from kiwi.model.flow import TRAINING_STEPS


@dataclass(frozen=True)
class VisionSize:
    """What the multimodal language model looks at: frames, and pixels a side."""

    frames: int
    side: int


class KiwiEditModel(nn.Module):
    """Kiwi-Edit: velocity of noisy latents, given source latents, a context, and reference latents.

    Args:
        transformer: a stock `WanTransformer3DModel`; its patch embedding and text embedder are replaced here, if
            that was not done before.
        context_encoder: see ContextEncoder.
        codec: see LatentCodec; it is not trained and holds no state of the module.
        reference_position: where reference frames stand in time.
        name: the preset that built it.
    """

    def __init__(
        self,
        transformer: Any,
        context_encoder: ContextEncoder,
        codec: LatentCodec,
        *,
        vision: VisionSize,
        reference_position: ReferencePosition = "last",
        name: str = "tiny",
    ) -> None:
        super().__init__()
        self.transformer = adapted(transformer)
        if next(transformer.parameters()).device.type == "cpu":
            transformer.set_attn_processor(MatmulAttention())
        self.context_encoder = context_encoder
        self.codec = codec
        self.vision = vision
        self.reference_position: ReferencePosition = reference_position
        self.name = name

    def forward(
        self, noisy: Tensor, sigma: Tensor, context: Tensor, source: Tensor | None, reference: Tensor | None = None
    ) -> Tensor:
        """Velocity [B, C, F, H, W] at noise levels [B] in 0-1."""
        packed = pack(noisy, sigma, source, reference, self.reference_position)
        output = self.transformer(packed, sigma * TRAINING_STEPS, context, return_dict=False)[0]
        return drop_reference(output, noisy.shape[2], self.reference_position)


def adapted(transformer: Any) -> Any:
    """Makes a stock Wan transformer take packed latents and context tokens (both replacements are idempotent)."""
    if not isinstance(transformer.patch_embedding, CompositePatchEmbedding):
        transformer.patch_embedding = CompositePatchEmbedding(cast(nn.Conv3d, transformer.patch_embedding))
    transformer.condition_embedder.text_embedder = nn.Identity()
    return transformer
