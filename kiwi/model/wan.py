"""The released sizes of the editor: stock Wan transformer, Wan autoencoder and Qwen2.5-VL, with our additions.

`SIZES` holds the two that the authors trained, and `middle`: the same structure in a few million parameters, which
runs on a CPU through the same code. Built anew they have RANDOM weights; `from_foundation` starts from released ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kiwi.errors import UsageError
from kiwi.model.conditioning import Conditioning
from kiwi.model.context import ContextEncoder
from kiwi.model.editor import KiwiEditModel
from kiwi.model.folders import load_tokenizer, loaded_whole
from kiwi.model.instruction import PromptTemplate
from kiwi.model.tiny import add_lora, build_tokenizer
from kiwi.model.vision import VisionBudget
from kiwi.model.wan_codec import WanCodec

SYSTEM_PROMPT = (
    "You will be given an image and instruction. Please describe the content of the image in detail based on "
    "instruction in your own words."
)
Config = dict[str, Any]


@dataclass(frozen=True)
class WanSize:
    """One size: configurations of the three stock classes, and the constants of ours.

    Attributes:
        transformer, autoencoder, language: keyword arguments of the stock classes and of `Qwen2_5_VLConfig`.
        queries: by mode.
        views: what the language model is shown.
        lora_rank: also its alpha, so that the adapters' product is added as it is.
    """

    transformer: Config
    autoencoder: Config
    language: Config
    queries: dict[str, int]
    views: VisionBudget
    lora_rank: int

    @property
    def width(self) -> int:
        return int(self.transformer["num_attention_heads"] * self.transformer["attention_head_dim"])

    @property
    def template(self) -> PromptTemplate:
        return PromptTemplate(SYSTEM_PROMPT, dict(self.queries))


def _transformer(heads: int, head: int, layers: int, feed_forward: int, channels: int, text: int = 4096) -> Config:
    return {
        "patch_size": (1, 2, 2), "num_attention_heads": heads, "attention_head_dim": head, "in_channels": channels,
        "out_channels": channels, "text_dim": text, "freq_dim": 256, "ffn_dim": feed_forward, "num_layers": layers,
        "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 1024,
    }  # fmt: skip


def _autoencoder(channels: int, dim: int, decoder_dim: int, mult: tuple[int, ...], blocks: int, packed: bool) -> Config:
    """Its latents' statistics belong to released weights and come with their config.json; here they are 0 and 1."""
    shared: Config = {
        "base_dim": dim, "decoder_base_dim": decoder_dim, "z_dim": channels, "dim_mult": list(mult),
        "num_res_blocks": blocks, "attn_scales": [], "temperal_downsample": [False, True, True],
        "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels, "scale_factor_temporal": 4,
    }  # fmt: skip
    if not packed:
        return {**shared, "scale_factor_spatial": 8}
    return {
        **shared, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
        "scale_factor_spatial": 16,
    }  # fmt: skip


QWEN_3B: Config = {
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
    },
    "tie_word_embeddings": True,
}  # fmt: skip
QWEN_MIDDLE: Config = {
    "text_config": {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6},
    },
    "vision_config": {
        "depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 128,
        "window_size": 112, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2,
    },
    "tie_word_embeddings": True,
}  # fmt: skip

RELEASED_QUERIES = {"image": 256, "video": 512, "reference": 768}
SIZES: dict[str, WanSize] = {
    "wan2.2-5b": WanSize(
        _transformer(24, 128, 30, 14336, 48), _autoencoder(48, 160, 256, (1, 2, 4, 4), 2, packed=True), QWEN_3B,
        RELEASED_QUERIES, VisionBudget(), lora_rank=64,
    ),
    "wan2.1-14b": WanSize(
        _transformer(40, 128, 40, 13824, 16), _autoencoder(16, 96, 96, (1, 2, 4, 4), 2, packed=False), QWEN_3B,
        RELEASED_QUERIES, VisionBudget(), lora_rank=64,
    ),
    "middle": WanSize(
        _transformer(4, 48, 6, 512, 16, text=64), _autoencoder(16, 8, 8, (1, 2, 2, 2), 1, packed=True), QWEN_MIDDLE,
        {"image": 16, "video": 24, "reference": 32}, VisionBudget(frames=4, frame_pixels=128 * 28 * 28), lora_rank=16,
    ),
}  # fmt: skip
DEFINING = ("num_attention_heads", "attention_head_dim", "num_layers", "ffn_dim", "in_channels", "patch_size")
TRAINED_SIZES = tuple(name for name in SIZES if name != "middle")


def size_of(name: str) -> WanSize:
    """Raises UsageError for a name that there is not."""
    if name not in SIZES:
        raise UsageError(f"no model size {name!r}", f"sizes: {', '.join(SIZES)}")
    return SIZES[name]


def name_of(transformer: Config) -> str | None:
    """The size whose transformer has this configuration; None where there is none such."""
    for name, size in SIZES.items():
        if all(_plain(transformer.get(key)) == _plain(size.transformer[key]) for key in DEFINING):
            return name
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def build_random(
    name: str,
    tokenizer: Any,
    *,
    seed: int = 0,
    conditioning: Conditioning | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> KiwiEditModel:
    """A new editor of a size in SIZES with RANDOM weights; on the "meta" device it takes no memory.

    Args:
        tokenizer: one that knows Qwen2.5-VL's special tokens.
        seed: of the random weights.
        dtype: of the transformer and the language model.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    size = size_of(name)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        transformer = WanTransformer3DModel(**size.transformer)
        tokens = _special_tokens(tokenizer)
        mllm = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**size.language, **tokens))
        codec = WanCodec(AutoencoderKLWan(**size.autoencoder))
        model = assembled(name, size, transformer, mllm, tokenizer, codec, conditioning)
    return in_precision(model, dtype)


def in_precision(model: KiwiEditModel, dtype: torch.dtype) -> KiwiEditModel:
    """The model with its parameters in `dtype`, in place; buffers such as the rotary angles keep theirs."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def build_middle(corpus: Iterable[str], *, seed: int = 0, conditioning: Conditioning | None = None) -> KiwiEditModel:
    """The middle size on the CPU with RANDOM weights, and a tokenizer made from the sentences of `corpus`."""
    return build_random("middle", build_tokenizer(corpus), seed=seed, conditioning=conditioning)


def from_foundation(
    name: str,
    backbone: Path,
    language_model: Path,
    *,
    seed: int = 0,
    conditioning: Conditioning | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> KiwiEditModel:
    """A new editor on released foundation weights: what stage 1 of the paper starts from.

    Queries and adapters are random, the connectors' last layers and the added convolutions zero.

    Args:
        backbone: a folder with `transformer/` and `vae/`, such as a copy of Wan-AI/Wan2.2-TI2V-5B-Diffusers.
        language_model: a folder of Qwen2.5-VL with its tokenizer, such as a copy of Qwen/Qwen2.5-VL-3B-Instruct.

    Raises:
        ModelError: weights that are missing, pickled, damaged, or of another model.
    """
    from diffusers import WanTransformer3DModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    size = size_of(name)
    transformer = loaded_whole(WanTransformer3DModel, backbone / "transformer", "transformer", torch_dtype=dtype)
    mllm = loaded_whole(Qwen2_5_VLForConditionalGeneration, language_model, "language model", dtype=dtype)
    codec = WanCodec.load(backbone / "vae")
    tokenizer = load_tokenizer(language_model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return assembled(name, size, transformer, mllm, tokenizer, codec, conditioning)


def assembled(
    name: str,
    size: WanSize,
    transformer: Any,
    mllm: nn.Module,
    tokenizer: Any,
    codec: WanCodec,
    conditioning: Conditioning | None = None,
) -> KiwiEditModel:
    """Our additions around the three stock parts: queries, connectors, LoRA, composite patch embedding."""
    conditioning = conditioning or Conditioning()
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    encoder = ContextEncoder(
        mllm, tokenizer, size.template, width,
        closing_tokens=True, reference_features=conditioning.reference_features,
    )  # fmt: skip
    add_lora(mllm, size.lora_rank, size.lora_rank)
    return KiwiEditModel(transformer, encoder, codec, vision=size.views, conditioning=conditioning, name=name)


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: int(tokenizer.convert_tokens_to_ids(token)) for key, token in names.items()}
