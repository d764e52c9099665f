"""The editor: a stock Wan transformer with composite patch embedding, a context encoder, and a latent codec."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from kiwi.model.attention import MatmulAttention
from kiwi.model.codec import LatentCodec
from kiwi.model.conditioning import CompositePatchEmbedding, Conditioning, ReferencePosition, drop_reference, pack
from kiwi.model.context import ContextEncoder
from kiwi.model.defaults import EditDefaults, defaults_of
from kiwi.model.errors import ModelError
from kiwi.model.flow import TRAINING_STEPS
from kiwi.model.vision import Views, VisionSize

__all__ = ["KiwiEditModel", "VisionSize", "adapted"]


class KiwiEditModel(nn.Module):
    """Kiwi-Edit: velocity of noisy latents, given source latents, a context, and reference latents.

    Args:
        transformer: a stock `WanTransformer3DModel`; its patch embedding and text embedder are replaced here, if
            that was not done before.
        context_encoder: see ContextEncoder.
        codec: see LatentCodec; it is not trained and holds no state of the module.
        vision: what the language model and the codec are shown; see Views.
        conditioning: how source and reference enter; the paper's choice by default.
        name: the preset that built it.
        defaults: how it is used where nothing else is said; the preset's own by default.

    Raises:
        ModelError: parts that do not fit each other.
    """

    def __init__(
        self,
        transformer: Any,
        context_encoder: ContextEncoder,
        codec: LatentCodec,
        *,
        vision: Views,
        conditioning: Conditioning | None = None,
        name: str = "tiny",
        defaults: EditDefaults | None = None,
    ) -> None:
        super().__init__()
        self.conditioning = conditioning or Conditioning()
        if context_encoder.reference_features != self.conditioning.reference_features:
            raise ModelError("the context encoder and the conditioning differ in reference_features", "give them alike")
        if codec.channels != transformer.config.out_channels:
            raise ModelError(
                f"the codec has {codec.channels} channels and the transformer {transformer.config.out_channels}",
                "give the codec that the transformer was trained with",
            )
        self.transformer = adapted(transformer, self.conditioning)
        if next(transformer.parameters()).device.type == "cpu":
            transformer.set_attn_processor(MatmulAttention())
        self.context_encoder = context_encoder
        self.codec = codec
        self.vision = vision
        self.name = name
        self.arithmetic: torch.dtype | None = None  # of the transformer, where its weights are kept in another
        self.defaults = defaults or defaults_of(name)

    @property
    def reference_position(self) -> ReferencePosition:
        return self.conditioning.reference_position

    @property
    def pixel_multiple(self) -> int:
        """What the height and width of a clip must be multiples of: the codec's stride times the patch."""
        return self.codec.spatial_stride * int(self.transformer.config.patch_size[1])

    def forward(
        self, noisy: Tensor, sigma: Tensor, context: Tensor, source: Tensor | None, reference: Tensor | None = None
    ) -> Tensor:
        """Velocity [B, C, F, H, W] at noise levels [B] in 0-1, in the precision of `noisy`.

        The transformer works in the precision of its own weights; timestep and noise level stay in float32, for
        bfloat16 has 294 values of the timestep only.
        """
        precision = self.arithmetic or self.transformer.patch_embedding.base.weight.dtype
        packed = pack(noisy, sigma, source, reference, self.reference_position)
        timestep = sigma.float() * TRAINING_STEPS
        output = self.transformer(packed, timestep, context.to(precision), return_dict=False)[0]
        return drop_reference(output, noisy.shape[2], self.reference_position).to(noisy.dtype)


def adapted(transformer: Any, conditioning: Conditioning | None = None) -> Any:
    """Makes a stock Wan transformer take packed latents and context tokens (both replacements are idempotent)."""
    if not isinstance(transformer.patch_embedding, CompositePatchEmbedding):
        base = cast(nn.Conv3d, transformer.patch_embedding)
        transformer.patch_embedding = CompositePatchEmbedding(base, conditioning)
    transformer.condition_embedder.text_embedder = nn.Identity()
    return transformer
