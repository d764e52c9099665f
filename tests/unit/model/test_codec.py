"""The fixed transform codec."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kiwi.configuration import SourceSettings
from kiwi.model import codec
from kiwi.model.codec import TransformCodec
from kiwi.model.errors import ModelError
from kiwi.model.inputs import frames_to_tensor
from kiwi.sources.procedural import KINDS, draw


def procedural(seed: int, count: int) -> torch.Tensor:
    settings = SourceSettings(seed=seed)
    clips = [draw(settings, index, KINDS[index % len(KINDS)], 9).target for index in range(count)]
    return frames_to_tensor(np.stack(clips))


def test_the_layout_is_causal_in_groups_of_four() -> None:
    latents = TransformCodec().encode(procedural(3, 1))
    assert latents.shape == (1, 48, 3, 8, 8)
    changed = procedural(3, 1)
    changed[:, :, 5:] = 0
    again = TransformCodec().encode(changed)
    assert torch.equal(again[:, :, :2], latents[:, :, :2])
    assert not torch.allclose(again[:, :, 2], latents[:, :, 2])


def test_clips_of_another_seed_come_back_at_over_30_db() -> None:
    frames = procedural(5, 16)
    fixed = TransformCodec()
    error = (fixed.decode(fixed.encode(frames)).clamp(-1, 1) - frames).square().mean()
    assert 10 * torch.log10(4 / error) > 30


def test_latents_have_about_unit_variance() -> None:
    latents = TransformCodec().encode(procedural(6, 64))
    assert 0.7 < float(latents.var()) < 1.4


def test_decoding_inverts_encoding_of_decoded_latents() -> None:
    fixed = TransformCodec()
    latents = torch.randn(2, 48, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fixed.encode(fixed.decode(latents)), latents, atol=1e-4)


def test_another_precision_moves_the_codec_nowhere() -> None:
    """The device "meta" stands for a GPU."""
    moved = TransformCodec().to("meta").to(torch.bfloat16)
    assert moved.encode(torch.zeros(1, 3, 1, 8, 8)).device.type == "meta"


@pytest.mark.parametrize("shape", [(1, 3, 4, 64, 64), (1, 3, 5, 60, 64), (1, 1, 5, 64, 64)])
def test_frames_that_do_not_fit_are_refused_with_their_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"4k\+1|multiples|colours"):
        TransformCodec().encode(torch.zeros(shape))


def test_the_shipped_table_has_the_shape_that_fit_gives(tmp_path: Path) -> None:
    shipped = json.loads((Path(codec.__file__).parent / codec.TABLE).read_text())
    fitted = codec.fit(procedural(7, 40))
    assert {part: set(table) for part, table in shipped.items()} == {p: set(t) for p, t in fitted.items()}
    assert all(len(table["index"]) == 48 and min(table["scale"]) > 0 for table in shipped.values())
    assert len(set(shipped["first"]["index"]) & set(fitted["first"]["index"])) > 36
    TransformCodec(fitted).save(tmp_path)
    assert TransformCodec.load(tmp_path).table == fitted
