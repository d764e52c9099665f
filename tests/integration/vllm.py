"""A tiny vision-language model with random weights, and a real vLLM server that serves it on the CPU.

The answers of such a model mean nothing; what is real is everything around them: the server's reading of requests and
pictures, its chat template, its structured output, its token counts and its errors.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiwi.curation.curators.vlm_asking import PROMPTS
from kiwi.model.tiny import SPECIALS

PORT = 8107
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_vlm(folder: Path) -> Path:
    """A Qwen3-VL of two layers with heads of 32 and random weights, its byte-level tokenizer and its processor."""
    import torch
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = _tokenizer()
    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 8192,
            "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [8, 4, 4], "mrope_interleaved": True, "rope_theta": 1e6
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    size = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512}
    sizes = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    images, videos = Qwen2VLImageProcessor(**sizes), Qwen3VLVideoProcessor(**sizes)
    processor = Qwen3VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """Byte-level, with merges learned from the curators' prompts: these must stay short, for vLLM's CPU build (0.32.0)
    dies when a prompt with a seed is read in more than one piece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([path.read_text() for path in sorted(PROMPTS.glob("*.txt"))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIALS[1:]),
    )  # fmt: skip


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server of the model "tiny". Skipped where vLLM's start script is not there."""
    named = os.environ.get("KIWI_VLLM_UP")
    script = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "bin" / "vllm-up"
    if not script.exists():
        pytest.skip(f"no start script for a vLLM server at {script} (set KIWI_VLLM_UP)")
    model = make_tiny_vlm(tmp_path_factory.mktemp("tiny-vlm"))
    # one thread: a tiny model on several of a busy machine's cores waits for them most of the time (9 times slower)
    few = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = subprocess.run([str(script), str(model), str(PORT)], capture_output=True, text=True, timeout=900, env=few)
    if done.returncode != 0:
        pytest.fail(f"{script} failed:\n{done.stderr[-2000:]}")
    try:
        yield f"http://127.0.0.1:{PORT}/v1"
    finally:
        subprocess.run([str(script), "--stop"], check=False, timeout=60)
