"""The SAM3 segmenter: a tiny model of the released class with random weights, loaded through the same code.

Random weights outline nothing sensible. What they can show: that every request is answered in order at its own size,
that batches change nothing, that the box matters, and what is refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Sam3ImageProcessor,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerProcessor,
)

from kiwi.configuration import WeightsSettings
from kiwi.curation.curators.in_batches import judged_in_batches
from kiwi.curation.curators.protocols import Box, Segmentation, SegmentRequest
from kiwi.curation.curators.sam3_segment import Sam3Segmenter, _agreement
from kiwi.curation.curators.weights import WeightsError
from kiwi.dataset.schema import Reason

BACKBONE = {
    "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 224, "patch_size": 14, "pretrain_image_size": 112, "window_size": 8,
    "global_attn_indexes": [1],
}  # fmt: skip
SIZES = ((100, 150), (200, 120), (64, 64), (90, 160), (33, 47))
BOX: Box = (0.1, 0.1, 0.6, 0.8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam3")
    vision = {
        "backbone_config": BACKBONE,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
    }
    prompts = {"hidden_size": 32, "image_size": 224, "patch_size": 14, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Sam3TrackerModel(
        Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )
    for name, tensor in model.named_parameters():
        if tensor.dim() > 1:  # large enough that picture and box reach the mask, small enough that nothing saturates
            torch.nn.init.normal_(tensor, std=(1.0 if "embed" in name else 1.5) / tensor[0].numel() ** 0.5)
    model.save_pretrained(folder)
    Sam3TrackerProcessor(Sam3ImageProcessor(size={"height": 224, "width": 224})).save_pretrained(folder)
    return folder


def settings(folder: Path, **changes: object) -> WeightsSettings:
    return WeightsSettings.model_validate(
        {"model": str(folder), "device": "cpu", "dtype": "float32", "batch": 3, **changes}
    )


def request(number: int, box: Box = BOX) -> SegmentRequest:
    image = np.random.default_rng(number).integers(0, 256, (*SIZES[number], 3), dtype=np.uint8)
    return SegmentRequest(str(number), image, image, box, "object")


@pytest.fixture(scope="module")
def segmenter(saved: Path) -> Sam3Segmenter:
    return Sam3Segmenter.from_settings(settings(saved))


def same(one: Segmentation, other: Segmentation) -> bool:
    if (one.mask is None) != (other.mask is None) or one.measures != other.measures:
        return False
    return one.mask is None or other.mask is None or np.array_equal(one.mask, other.mask)


def test_each_request_is_answered_in_order_at_its_own_size(segmenter: Sam3Segmenter) -> None:
    found = list(segmenter.segment(request(number) for number in range(5)))
    assert [answer.mask.shape for answer in found if answer.mask is not None] == list(SIZES)
    assert all(answer.mask is not None and answer.mask.dtype == np.bool_ for answer in found)
    assert all(set(answer.measures) == set(segmenter.measures) for answer in found)


def test_an_answer_does_not_depend_on_how_many_came_with_it(segmenter: Sam3Segmenter) -> None:
    together = list(segmenter.segment(request(number) for number in (0, 1, 2, 3)))
    alone = [next(segmenter.segment([request(number)])) for number in (0, 1, 2, 3)]
    assert all(same(one, other) for one, other in zip(together, alone, strict=True))


def test_the_size_of_a_batch_moves_masks_by_rounding_only(saved: Path, segmenter: Sam3Segmenter) -> None:
    one_by_one = Sam3Segmenter.from_settings(settings(saved, batch=1))
    requests = [request(number) for number in range(4)]
    for one, other in zip(one_by_one.segment(requests), segmenter.segment(requests), strict=True):
        assert one.mask is not None
        assert other.mask is not None
        assert float((one.mask != other.mask).mean()) < 0.01
        assert one.measures["iou"] == pytest.approx(other.measures["iou"], abs=1e-4)


def test_it_holds_no_more_requests_than_a_batch(segmenter: Sam3Segmenter) -> None:
    taken: list[int] = []

    def stream() -> object:
        for number in range(5):
            taken.append(number)
            yield request(number)

    answers = segmenter.segment(stream())  # type: ignore[arg-type]
    next(answers)
    assert taken == [0, 1, 2]


def test_the_box_steers_the_mask_in_shares_of_the_frame(segmenter: Sam3Segmenter) -> None:
    left, right, again = segmenter.segment([request(0), request(0, (0.5, 0.3, 1.0, 0.9)), request(0)])
    assert left.mask is not None
    assert right.mask is not None
    assert (left.mask != right.mask).any()
    assert same(left, again)


def test_the_box_reaches_the_model_in_its_own_pixels(segmenter: Sam3Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = segmenter.loaded().model, []
    forward = model.forward

    def watched(*args: object, **named: object) -> object:
        seen.append(named["input_boxes"])
        return forward(*args, **named)

    monkeypatch.setattr(model, "forward", watched)
    list(segmenter.segment([request(0), request(1)]))
    expected = torch.tensor([0.1, 0.1, 0.6, 0.8]) * 224  # the model's square, whatever the frame's aspect
    assert torch.allclose(seen[0][0, 0], expected, atol=1e-3)
    assert torch.allclose(seen[1][0, 0], expected, atol=1e-3)


def test_masks_and_scores_are_those_of_the_models_own_call(segmenter: Sam3Segmenter) -> None:
    sam3, asked = segmenter.loaded(), request(0)
    height, width = SIZES[0]
    box = [[[BOX[0] * width, BOX[1] * height, BOX[2] * width, BOX[3] * height]]]
    inputs = sam3.processor(images=asked.target, input_boxes=box, return_tensors="pt")
    with torch.inference_mode():
        out = sam3.model(pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False)
    mask = sam3.processor.post_process_masks(out.pred_masks, inputs["original_sizes"])[0][0, 0].numpy()
    found = next(segmenter.segment([asked]))
    assert found.mask is not None
    assert float((found.mask != mask).mean()) < 0.001
    assert found.measures["iou"] == pytest.approx(float(out.iou_scores), abs=1e-4)
    assert found.measures["object_score"] == pytest.approx(float(out.object_score_logits.sigmoid()), abs=1e-4)
    assert found.measures["area"] == pytest.approx(float(mask.mean()), abs=0.001)


def test_a_box_outside_of_the_frame_fails_alone(segmenter: Sam3Segmenter) -> None:
    boxes: list[Box] = [BOX, (1.2, 0.1, 1.5, 0.5), (0.5, float("nan"), 0.7, 0.9), BOX]
    found = list(segmenter.segment(request(number, box) for number, box in enumerate(boxes)))
    assert [answer.reason for answer in found] == [None, Reason.CURATOR_ERROR, Reason.CURATOR_ERROR, None]
    assert "holds nothing of the frame" in found[1].detail
    assert same(found[0], next(segmenter.segment([request(0)])))


@pytest.mark.parametrize(("bias", "area"), [(-1e4, 0.0), (1e4, 1.0)])
def test_an_empty_or_whole_mask_is_degenerate(saved: Path, bias: float, area: float) -> None:
    segmenter = Sam3Segmenter.from_settings(settings(saved, batch=1))
    sam3 = segmenter.loaded()
    forward = sam3.model.forward

    def shifted(*args: object, **named: object) -> object:
        out = forward(*args, **named)
        out.pred_masks = torch.full_like(out.pred_masks, bias)
        return out

    sam3.model.forward = shifted
    found = next(segmenter.segment([request(0)]))
    assert (found.reason, found.mask, found.measures["area"]) == (Reason.MASK_DEGENERATE, None, area)


def test_the_foreground_of_a_background_change_is_outlined_like_an_object(segmenter: Sam3Segmenter) -> None:
    asked = request(0)
    foreground = SegmentRequest("0", asked.source, asked.target, BOX, "foreground")
    assert same(next(segmenter.segment([foreground])), next(segmenter.segment([asked])))


def test_agreement_is_the_overlap_of_the_box_with_the_masks_own() -> None:
    mask = np.zeros((100, 200), bool)
    mask[20:60, 50:150] = True
    assert _agreement((0.25, 0.2, 0.75, 0.6), mask) == pytest.approx(1.0)
    assert _agreement((0.25, 0.2, 0.50, 0.6), mask) == pytest.approx(0.5)
    assert _agreement((-1.0, 0.0, 2.0, 1.0), np.ones((4, 4), bool)) == pytest.approx(1.0)
    assert _agreement((0.80, 0.2, 0.90, 0.6), mask) == 0.0
    assert _agreement((0.25, 0.2, 0.75, 0.6), np.zeros((100, 200), bool)) == 0.0


def test_bfloat16_leaves_prompts_and_masks_in_float32(saved: Path, segmenter: Sam3Segmenter) -> None:
    low = Sam3Segmenter.from_settings(settings(saved, dtype="bfloat16"))
    found, full = next(low.segment([request(0)])), next(segmenter.segment([request(0)]))
    model = low.loaded().model
    assert next(model.vision_encoder.parameters()).dtype == torch.bfloat16
    assert model.shared_image_embedding.positional_embedding.dtype == torch.float32
    assert found.mask is not None
    assert full.mask is not None
    assert float((found.mask != full.mask).mean()) < 0.1


def test_the_released_layout_inside_a_video_model_loads_the_same(
    saved: Path, tmp_path: Path, segmenter: Sam3Segmenter
) -> None:
    """The release holds a detector and a tracker in one file; that layout is rebuilt here from the tiny model."""
    weights = {}
    for name, tensor in load_file(saved / "model.safetensors").items():  # transformers saves them with one prefix more
        plain = name.removeprefix("tracker_model.")
        weights[plain if plain.startswith(("detector_model.", "tracker_neck.")) else name] = tensor
    assert len({name.partition(".")[0] for name in weights}) == 3
    weights["detector_model.text_encoder.unused"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", "tracker_config": config}))
    (tmp_path / "processor_config.json").write_bytes((saved / "processor_config.json").read_bytes())
    released = Sam3Segmenter.from_settings(settings(tmp_path))
    one, other = next(released.segment([request(0)])), next(segmenter.segment([request(0)]))
    assert one.mask is not None
    assert other.mask is not None
    assert np.array_equal(one.mask, other.mask)
    assert one.measures == pytest.approx(other.measures, abs=1e-5)


def test_weights_that_cannot_be_had_stop_the_stage_rather_than_fail_every_sample(tmp_path: Path) -> None:
    absent = Sam3Segmenter.from_settings(settings(tmp_path / "absent"))
    with pytest.raises(WeightsError, match=r"curation\.sam3\.model: there is no folder"):
        next(absent.segment([request(0)]))


def test_running_out_of_memory_names_the_batch(segmenter: Sam3Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is made here: a test cannot exhaust a machine."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(segmenter.loaded().model, "get_image_embeddings", full)
    with pytest.raises(WeightsError) as caught:
        next(segmenter.segment([request(0)]))
    assert caught.value.remedy == "lower curation.sam3.batch (now 3)"


def test_what_one_item_trips_over_is_its_own_failure() -> None:
    def work(numbers: object) -> list[Segmentation]:
        return [Segmentation({"half": 1 / number}) for number in numbers]  # type: ignore[attr-defined]

    found = list(judged_in_batches(work, Segmentation, 4, [1, 2, 0, 4, 5]))
    assert [answer.measures.get("half") for answer in found] == [1.0, 0.5, None, 0.25, 0.2]
    assert (found[2].reason, found[2].detail) == (Reason.CURATOR_ERROR, "ZeroDivisionError: division by zero")
