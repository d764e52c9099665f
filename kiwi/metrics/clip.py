"""Likeness by CLIP: frames to a sentence, to a picture, and to their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiwi.configuration import WeightsSettings
from kiwi.curation.curators import clip_deduplicate
from kiwi.curation.curators.clip_deduplicate import Clip
from kiwi.curation.curators.hub import cached_where_hub_is_away
from kiwi.curation.curators.weights import WeightsError, loading, once, within_memory
from kiwi.metrics.results import Failure, Frames, Image, Measured, MetricError, check_clip

UNIT = "cosine, -1 to 1"
SETTING = "curation.clip"
WINDOW = 16  # frames of a window that is described as one, as many as FVD's


@dataclass(frozen=True)
class ClipFeatures:
    """CLIP for frames and sentences, on its device; weights load at the first use.

    As an extractor for Fréchet distances it describes each window of 16 frames (or a shorter clip, whole) by the mean
    of its frames' features: it sees what is shown, and no motion.
    """

    settings: WeightsSettings
    loaded: Callable[[], Clip]
    tokenizer: Callable[[], Any]
    name: str = "clip_features"

    def frames(self, frames: Frames) -> NDArray[np.float32]:
        """Features of length 1, [T, width]. Raises MetricError(WEIGHTS)."""
        check_clip(frames, "the clip")
        batch = self.settings.batch
        with _weights():
            clip = self.loaded()
            with within_memory("describing frames with CLIP", f"lower clip's batch (now {batch})"):
                parts = [clip.features(list(frames[at : at + batch])) for at in range(0, len(frames), batch)]
        return np.concatenate(parts)

    def text(self, sentence: str) -> tuple[NDArray[np.float32], int]:
        """The sentence's feature of length 1, [width], and how many of its tokens did not fit. Raises MetricError."""
        import torch

        with _weights():
            clip, tokenizer = self.loaded(), self.tokenizer()
            longest = int(clip.model.config.text_config.max_position_embeddings)
            count = len(tokenizer(sentence)["input_ids"])
            tokens = tokenizer(sentence, truncation=True, max_length=longest, return_tensors="pt")
            with torch.inference_mode():
                given = {key: tokens[key].to(clip.device) for key in ("input_ids", "attention_mask")}
                found = clip.model.get_text_features(**given).pooler_output.float()
                unit = torch.nn.functional.normalize(found, dim=-1)[0]
        return np.asarray(unit.cpu().numpy(), np.float32), max(0, count - longest)

    def features(self, frames: Frames) -> NDArray[np.float32]:
        """See frechet.VideoFeatures: [windows, width]. What is left over at the end is a window of its own if half."""
        found = self.frames(frames)
        starts = [at for at in range(0, len(found), WINDOW) if at == 0 or len(found) - at >= WINDOW // 2]
        return np.stack([found[at : at + WINDOW].mean(axis=0) for at in starts])


def clip_features(settings: WeightsSettings) -> ClipFeatures:
    """CLIP by its settings; nothing is loaded yet. Weights that cannot be had are asked for once only."""
    failed: list[WeightsError] = []

    def load() -> Clip:
        if failed:
            raise failed[0]
        try:
            return clip_deduplicate.load(settings)
        except WeightsError as error:
            failed.append(error)
            raise

    return ClipFeatures(settings, once(load), once(lambda: _tokenizer(settings)))


def clip_text(frames: NDArray[np.float32], sentence: str, clip: ClipFeatures) -> Measured:
    """Text-video similarity: the mean over frames of the cosine of frame and sentence, -1 to 1, higher is better.

    CLIP is Radford et al. (2021); the cosine of caption and picture is Hessel et al. (2021), here without their factor
    of 2.5. Cosines of different weights do not compare. The sentence should describe the result ("a red car on a
    beach"), not the change ("make the car red").

    Args:
        frames: features of the edit's frames, [T, width], of length 1.

    Raises:
        MetricError: NOT_GIVEN for an empty sentence, WEIGHTS.
    """
    if not sentence.strip():
        raise MetricError(Failure.NOT_GIVEN, "the sentence is empty", "say what the edit should show")
    feature, cut = clip.text(sentence)
    note = clip.settings.model + (f"; the sentence's last {cut} tokens do not fit and are left out" if cut else "")
    return _cosines("clip_text", frames @ feature, note)


def clip_image(frames: NDArray[np.float32], reference: Image, clip: ClipFeatures) -> Measured:
    """Image-video similarity: the mean over frames of the cosine of frame and reference, -1 to 1, higher is better.

    Radford et al. (2021); CLIP-I of Ruiz et al. (2023, DreamBooth), who compare with pictures of the subject. The whole
    frame is compared, so that a small subject moves it little.

    Raises:
        MetricError: WEIGHTS.
    """
    return _cosines("clip_image", frames @ clip.frames(reference[None])[0], clip.settings.model)


def clip_consistency(frames: NDArray[np.float32], source: NDArray[np.float32] | None, model: str) -> Measured:
    """Frame consistency: the mean cosine of neighbouring frames' features, -1 to 1, higher is better.

    Esser et al. (2023, Gen-1) and Wu et al. (2023, Tune-A-Video). A still picture has 1, so compare with `of_source`.

    Raises:
        MetricError: TOO_SHORT for one frame.
    """
    if len(frames) < 2:
        raise MetricError(Failure.TOO_SHORT, "frame consistency needs two frames, and the edit has one")
    of_source = float(_neighbours(source).mean()) if source is not None and len(source) > 1 else None
    return _cosines("clip_consistency", _neighbours(frames), model, of_source)


def _neighbours(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((features[:-1] * features[1:]).sum(axis=1))


def _cosines(name: str, cosines: NDArray[np.float32], note: str, of_source: float | None = None) -> Measured:
    frames = tuple(float(each) for each in cosines)
    return Measured(name, float(np.mean(frames)), UNIT, "higher", frames, of_source, note)


@contextmanager
def _weights() -> Iterator[None]:
    """Weights that cannot be had are a typed failure of the metric, not of the program."""
    try:
        yield
    except WeightsError as error:
        raise MetricError(Failure.WEIGHTS, error.message, error.remedy) from error


def _tokenizer(settings: WeightsSettings) -> Any:
    with loading(SETTING, settings.model), cached_where_hub_is_away(settings.model):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(settings.model, revision=settings.revision or "main")
