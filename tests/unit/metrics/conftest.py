"""A tiny CLIP with random weights, saved as a released one is, and clips that have something to measure."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from kiwi.configuration import WeightsSettings
from kiwi.metrics.clip import ClipFeatures, clip_features


@pytest.fixture(scope="session")
def saved_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP of two layers: random weights, so that likeness means nothing, through the real code."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    words = {word: place for place, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=words, merges=[]).save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 64, "patch_size": 16}, projection_dim=24)
    model = CLIPModel(config)
    for name, tensor in model.named_parameters():
        if tensor.dim() > 1 and "embedding" not in name:  # large enough that pictures keep apart
            torch.nn.init.normal_(tensor, std=1 / tensor[0].numel() ** 0.5)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(saved_clip: Path) -> ClipFeatures:
    return clip_features(WeightsSettings(model=str(saved_clip), device="cpu", dtype="float32", batch=4))


def textured(count: int = 6, height: int = 64, width: int = 80, seed: int = 0) -> NDArray[np.uint8]:
    """A blurred random picture that slides by a pixel a frame."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width + count, 3), dtype=np.uint8)
    large = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 20, 235, cv2.NORM_MINMAX)
    return np.stack([large[:, count - at : count - at + width] for at in range(count)])


@pytest.fixture
def source() -> NDArray[np.uint8]:
    return textured()


@pytest.fixture
def target(source: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The source with a square of another colour."""
    edited = source.copy()
    edited[:, 20:40, 30:50] = (255, 0, 0)
    return edited
