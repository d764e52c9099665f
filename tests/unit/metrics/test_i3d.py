"""I3D for FVD: its layout, its padding against the definition, and distances that follow from weights set by hand.

The released weights cannot be had here, so nothing shows that these figures are theirs; what is shown is that a file
with their names and shapes is what runs.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from kiwi.cli import app
from kiwi.media import encode_video
from kiwi.metrics.frechet import frechet_video_distance
from kiwi.metrics.i3d import I3D, as_seen, i3d_features, padded, pooled
from kiwi.metrics.results import Failure, MetricError


@pytest.fixture(scope="module")
def brightness(tmp_path_factory):
    """Weights that carry the mean of red through every layer: logit 0 is 10 times it, the others are their number."""
    network = I3D()
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    for name in state:
        if name.endswith("running_var"):
            state[name].fill_(1 - 1e-3)  # so that variance and epsilon make one
        elif name.endswith("bn.weight"):
            state[name].fill_(1)
    state["Conv3d_1a_7x7.bn.bias"][0] = 1.0  # red of -1 to 1 becomes 0 to 2, and ReLU takes nothing
    state["Conv3d_1a_7x7.conv3d.weight"][0, 0, 3, 3, 3] = 1.0  # SAME pads two or three before: always inside
    for name in ("Conv3d_2b_1x1", "Conv3d_2c_3x3", *(f"Mixed_{each}.b0" for each in MIXED)):
        weight = state[f"{name}.conv3d.weight"]
        weight[0, 0, weight.shape[2] // 2, weight.shape[3] // 2, weight.shape[4] // 2] = 1.0
    state["logits.conv3d.weight"][0, 0] = 10.0
    state["logits.conv3d.bias"][1:] = torch.arange(1, 400)
    path = tmp_path_factory.mktemp("weights") / "i3d.safetensors"
    save_file(state, str(path))
    return path


MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")


def plain(level, frames=9):
    return np.full((frames, 32, 48, 3), level, np.uint8)


def test_names_and_shapes_are_those_of_the_widespread_conversion():
    shapes = {name: tuple(value.shape) for name, value in I3D().state_dict().items()}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Mixed_3c.b0.conv3d.weight"] == (128, 256, 1, 1, 1)
    assert shapes["Mixed_4f.b1b.conv3d.weight"] == (320, 160, 3, 3, 3)
    assert shapes["Mixed_5c.b2b.bn.running_var"] == (128,)
    assert shapes["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)
    assert sum(name.endswith("conv3d.weight") for name in shapes) == 58
    assert sum(name.endswith("conv3d.bias") for name in shapes) == 1


@pytest.mark.parametrize(
    ("length", "wide", "step"), [(16, 7, 2), (9, 7, 2), (9, 3, 2), (5, 2, 2), (8, 3, 1), (4, 1, 1)]
)
def test_padding_keeps_the_ceiling_of_length_over_step_with_the_odd_one_at_the_end(length, wide, step):
    given = torch.ones(1, 1, length, 1, 1)
    found = padded(given, (wide, 1, 1), (step, 1, 1)).flatten()
    windows = (len(found) - wide) // step + 1
    assert windows == -(-length // step)
    before, after = int(found.argmax()), len(found) - length - int(found.argmax())
    assert after - before in (0, 1)


def test_the_pool_is_the_greatest_value_in_reach():
    given = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]).view(1, 1, 1, 1, 5)
    assert pooled(given, (1, 1, 3), (1, 1, 2)).flatten().tolist() == [3.0, 5.0, 5.0]


def test_frames_are_seen_at_224_between_minus_one_and_one():
    seen = as_seen(torch.from_numpy(np.stack([plain(0, 1)[0], plain(255, 1)[0]])))
    assert seen.shape == (1, 3, 2, 224, 224)
    assert torch.allclose(seen[0, :, 0], torch.tensor(-1.0), atol=1e-6)
    assert torch.allclose(seen[0, :, 1], torch.tensor(1.0), atol=1e-6)


def test_features_are_the_logits_that_the_weights_give_by_hand(brightness):
    features = i3d_features(brightness).features(plain(51))
    assert features.shape == (1, 400)
    assert features[0, 0] == pytest.approx(10 * (51 / 127.5), rel=1e-3)
    assert features[0, 1:].tolist() == pytest.approx(list(range(1, 400)))


def test_the_distance_of_plain_clips_is_worked_by_hand_and_called_fvd(brightness):
    extractor = i3d_features(brightness)
    found = frechet_video_distance([plain(10), plain(30)], [plain(60), plain(80)], extractor)
    assert found.name == "fvd"
    assert found.value == pytest.approx((10 * 50 / 127.5) ** 2, rel=1e-2)


def test_clips_and_files_that_do_not_do_are_typed_failures(tmp_path, brightness):
    with pytest.raises(MetricError, match="8 frames") as caught:
        i3d_features(brightness).features(plain(1, 8))
    assert caught.value.reason is Failure.TOO_SHORT
    other, broken = tmp_path / "other.safetensors", tmp_path / "pickle.pt"
    save_file({"weight": torch.zeros(1)}, str(other))
    torch.save({"weight": torch.zeros(1)}, broken)
    for path, said in ((other, "other weights"), (broken, "no safetensors file"), (tmp_path / "none", "no file")):
        with pytest.raises(MetricError, match=said) as caught:
            i3d_features(path).features(plain(1))
        assert caught.value.reason is Failure.WEIGHTS


def test_the_command_gives_fvd_of_two_folders(tmp_path, brightness):
    for folder, levels in (("edits", (10, 30)), ("sources", (60, 80))):
        (tmp_path / folder).mkdir()
        for number, level in enumerate(levels):
            encode_video(tmp_path / folder / f"{number}.mp4", plain(level), 8, lossless=True)
    folders = [str(tmp_path / "edits"), str(tmp_path / "sources")]
    more = ["--i3d", str(brightness), "--only", "flicker", "--json"]
    found = CliRunner().invoke(app, ["bench", "metrics", *folders, *more])
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)["frechet"]
    assert (said["name"], said["direction"]) == ("fvd", "lower")
    assert said["value"] == pytest.approx((10 * 50 / 127.5) ** 2, rel=0.1)
