"""CLIP similarities of a tiny random model against the features worked out by hand from the same weights."""

import numpy as np
import pytest

from kiwi.configuration import WeightsSettings
from kiwi.metrics.clip import clip_consistency, clip_features, clip_image, clip_text
from kiwi.metrics.results import Failure, MetricError


def by_hand(saved_clip, frames=None, text=None):
    """Features of length 1 straight from transformers' own processor and model, one frame at a time."""
    import torch
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(saved_clip).eval()
    with torch.inference_mode():
        if text is not None:
            hidden = model.text_model(**CLIPTokenizer.from_pretrained(saved_clip)(text, return_tensors="pt"))
            found = model.text_projection(hidden.pooler_output)
        else:
            processor = CLIPImageProcessor.from_pretrained(saved_clip)
            pixels = [processor(images=frame, return_tensors="pt")["pixel_values"] for frame in frames]
            hidden = [model.vision_model(pixel_values=each).pooler_output for each in pixels]
            found = model.visual_projection(torch.cat(hidden))
    vectors = found.numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_similarities_are_the_mean_cosines_of_frames_with_sentence_and_reference(saved_clip, clip, source, target):
    frames, expected = clip.frames(source), by_hand(saved_clip, source)
    sentence = by_hand(saved_clip, text="a red car")[0]
    reference = by_hand(saved_clip, target[:1])[0]
    found = clip_text(frames, "a red car", clip)
    assert found.per_frame == pytest.approx(expected @ sentence, abs=1e-5)
    assert found.value == pytest.approx((expected @ sentence).mean(), abs=1e-5)
    image = clip_image(frames, target[0], clip)
    assert image.per_frame == pytest.approx(expected @ reference, abs=1e-5)
    assert clip_image(clip.frames(np.repeat(target[:1], 2, axis=0)), target[0], clip).value == pytest.approx(
        1, abs=1e-5
    )


def test_consistency_is_the_mean_cosine_of_neighbours(saved_clip, clip, source):
    expected = by_hand(saved_clip, source)
    neighbours = (expected[:-1] * expected[1:]).sum(axis=1)
    still = clip.frames(np.repeat(source[:1], 3, axis=0))
    found = clip_consistency(clip.frames(source), still, "tiny")
    assert found.per_frame == pytest.approx(neighbours, abs=1e-5)
    assert found.value == pytest.approx(neighbours.mean(), abs=1e-5)
    assert found.of_source == pytest.approx(1, abs=1e-5)
    with pytest.raises(MetricError) as caught:
        clip_consistency(still[:1], None, "tiny")
    assert caught.value.reason is Failure.TOO_SHORT


def test_a_sentence_that_does_not_fit_is_cut_and_said(clip, source):
    frames = clip.frames(source[:1])
    found = clip_text(frames, "abcdefghijklmnopqrst", clip)  # 20 letters and two marks: 22 tokens into 16
    assert "last 6 tokens do not fit" in found.note
    assert "do not fit" not in clip_text(frames, "abcd", clip).note


def test_a_clip_is_described_by_windows_of_sixteen_frames(clip, source):
    long = np.concatenate([source] * 7)[:41]
    found, frames = clip.features(long), clip.frames(long)
    assert np.allclose(found, [frames[:16].mean(0), frames[16:32].mean(0), frames[32:].mean(0)])
    assert len(clip.features(long[:39])) == 2, "seven frames left over are no window"
    assert len(clip.features(long[:3])) == 1


def test_weights_out_of_reach_are_a_typed_failure_with_the_remedy(tmp_path, source):
    missing = clip_features(WeightsSettings(model=str(tmp_path / "none"), device="cpu"))
    with pytest.raises(MetricError, match="there is no folder") as caught:
        missing.frames(source)
    assert caught.value.reason is Failure.WEIGHTS
    assert caught.value.remedy


def test_where_the_hub_is_away_weights_are_missing_at_once_and_the_hub_is_asked_once(source, monkeypatch):
    import requests
    from huggingface_hub import constants

    asked = []

    def away(address, timeout):
        """A FAKE network without a way out, which notes who wanted to go there."""
        asked.append(address)
        raise requests.ConnectionError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(requests, "head", away)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("the hub was asked again"))
    nowhere = clip_features(WeightsSettings(model="no-such-owner/no-such-model", device="cpu"))
    for _ in range(2):
        with pytest.raises(MetricError, match="is not in the local cache, and the hub cannot be reached") as caught:
            nowhere.frames(source)
        assert caught.value.reason is Failure.WEIGHTS
    assert asked == [constants.ENDPOINT]
    assert not constants.HF_HUB_OFFLINE, "a library's setting is left as it was"


def test_an_empty_sentence_is_none(clip, source):
    with pytest.raises(MetricError) as caught:
        clip_text(clip.frames(source[:1]), "  ", clip)
    assert caught.value.reason is Failure.NOT_GIVEN
