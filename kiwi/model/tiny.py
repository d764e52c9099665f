"""Builds the tiny editor: stock classes in tiny configurations, with RANDOM weights.

Sizes and initial scales are those that learned in a feasibility trial on two CPU cores (docs/model.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kiwi.model.codec import TransformCodec
from kiwi.model.conditioning import Conditioning
from kiwi.model.context import ContextEncoder
from kiwi.model.editor import KiwiEditModel
from kiwi.model.instruction import QUERY_TOKEN, PromptTemplate
from kiwi.model.vision import VisionSize

HEADS, HEAD_WIDTH, LAYERS = 2, 48, 3
QUERIES = 16
VOCABULARY = 512
LORA_RANK = 16
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", QUERY_TOKEN, "<|object_ref_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
LORA_TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)"


def build_tiny(corpus: Iterable[str], seed: int = 0, conditioning: Conditioning | None = None) -> KiwiEditModel:
    """A new tiny editor with random weights.

    Args:
        corpus: sentences from which the byte-level tokenizer learns its merges.
        seed: of the random weights.
        conditioning: the paper's choice by default.
    """
    from diffusers import WanTransformer3DModel

    conditioning = conditioning or Conditioning()

    codec = TransformCodec()
    tokenizer = build_tokenizer(corpus)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_WIDTH,
            in_channels=codec.channels,
            out_channels=codec.channels,
            text_dim=HEADS * HEAD_WIDTH,
            freq_dim=64,
            ffn_dim=2 * HEADS * HEAD_WIDTH,
            num_layers=LAYERS,
            rope_max_seq_len=128,
        )
        mllm = _tiny_mllm(tokenizer)
        template = PromptTemplate(
            system="", queries=dict.fromkeys(("image", "video", "reference"), QUERIES), hint=False
        )
        encoder = ContextEncoder(
            mllm, tokenizer, template, HEADS * HEAD_WIDTH, reference_features=conditioning.reference_features
        )
        for bank in encoder.queries.values():
            nn.init.normal_(bank)
        encoder.copy_queries("image", "video")
        encoder.copy_queries("image", "reference")
        add_lora(mllm, LORA_RANK, LORA_RANK)
        views = VisionSize(frames=2, side=56)
        return KiwiEditModel(transformer, encoder, codec, vision=views, conditioning=conditioning, name="tiny")


def build_tokenizer(corpus: Iterable[str]) -> Any:
    """A byte-level BPE tokenizer made in place: 256 bytes, the special tokens, and merges learned from `corpus`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIALS[1:]),
    )  # fmt: skip


def _tiny_mllm(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    mllm = Qwen2_5_VLForConditionalGeneration(config)
    for module in mllm.modules():  # weights 1/sqrt(fan-in), embeddings 1: random features that keep their inputs apart
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
        elif isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    return mllm


def add_lora(mllm: Any, rank: int, alpha: int) -> None:
    """Injects LoRA into the language model's attention (q, k, v, o), in place; the rest is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    mllm.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS, lora_dropout=0.0), mllm)
