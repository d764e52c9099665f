"""PSNR and SSIM against hand-worked cases and a second implementation, over the frame and outside a region."""

import numpy as np
import pytest

from kiwi.metrics.fidelity import psnr, ssim, ssim_map
from kiwi.metrics.frames import luma
from kiwi.metrics.results import Failure, MetricError


def noise(seed, shape=(3, 24, 30, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def naive_ssim(first, second):
    """Wang et al. (2004), equation 13, window by window in float64: slow, and like no line of the one under test."""
    offsets = np.arange(-5, 6)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    out = np.empty((first.shape[0] - 10, first.shape[1] - 10))
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            x = first[row : row + 11, column : column + 11].astype(np.float64)
            y = second[row : row + 11, column : column + 11].astype(np.float64)
            mx, my = (kernel * x).sum(), (kernel * y).sum()
            vx, vy = (kernel * (x - mx) ** 2).sum(), (kernel * (y - my) ** 2).sum()
            cov = (kernel * (x - mx) * (y - my)).sum()
            out[row, column] = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return out


def alike_pairs():
    """Luma pairs: noise, a noisy copy, bright flat areas where float32 loses variance, and inverted frames."""
    base = noise(1)[0, :, :, 0]
    near = np.clip(base.astype(int) + np.random.default_rng(2).integers(-9, 10, base.shape), 0, 255).astype(np.uint8)
    flat = np.full_like(base, 250)
    flat[3, 4] = 251
    return [(base, noise(3)[0, :, :, 0]), (base, near), (flat, np.full_like(base, 249)), (base, 255 - base)]


@pytest.mark.parametrize("pair", range(4))
def test_ssim_is_that_of_a_plain_double_loop(pair):
    first, second = alike_pairs()[pair]
    assert np.abs(ssim_map(first, second) - naive_ssim(first, second)).max() < 2e-4


@pytest.mark.parametrize("pair", range(4))
def test_ssim_is_that_of_scikit_image(pair):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    first, second = alike_pairs()[pair]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert float(ssim_map(first, second).mean()) == pytest.approx(
        metrics.structural_similarity(first, second, **options), abs=1e-4
    )


def test_ssim_of_a_clip_is_the_mean_over_its_frames_luma():
    edit, other = noise(1), noise(2)
    found = ssim("ssim_target", edit, other, "ground truth")
    expected = [naive_ssim(luma(one), luma(two)).mean() for one, two in zip(edit, other, strict=True)]
    assert found.per_frame == pytest.approx(expected, abs=1e-4)
    assert found.value == pytest.approx(np.mean(expected), abs=1e-4)


def test_ssim_outside_a_region_sees_only_windows_that_lie_wholly_outside():
    source = noise(1, (2, 40, 40, 3))
    edit = source.copy()
    edit[:, :12, :12] = 0
    outside = np.ones((2, 40, 40), bool)
    outside[:, :12, :12] = False
    assert ssim("ssim_outside", edit, source, "source", outside).value == pytest.approx(1, abs=1e-6)
    assert ssim("ssim_outside", edit, source, "source", np.ones_like(outside)).value < 0.95
    edit[0, 30, 30] = 255 - edit[0, 30, 30]
    assert ssim("ssim_outside", edit, source, "source", outside).per_frame[0] < 1


def test_psnr_is_that_of_a_hand_worked_case():
    first = np.full((2, 4, 4, 3), 100, np.uint8)
    second = first.copy()
    second[0, :2] += 20  # half of one frame of two by 20: mse 200 and 0, together 100
    found = psnr("psnr_target", first, second, "ground truth")
    assert found.value == pytest.approx(10 * np.log10(65025 / 100))
    assert found.per_frame == pytest.approx((10 * np.log10(65025 / 200), 60.0))
    assert (found.unit, found.direction) == ("dB", "higher")


def test_psnr_within_a_region_is_that_of_its_pixels_alone():
    edit, source = noise(4), noise(5)
    region = np.random.default_rng(6).random(edit.shape[:3]) < 0.3
    region[1] = False
    error = (edit.astype(float) - source) ** 2
    found = psnr("psnr_outside", edit, source, "source", region)
    assert found.value == pytest.approx(10 * np.log10(65025 / error[region].mean()), abs=1e-9)
    assert found.per_frame[1] is None, "a frame without a pixel in the region has no figure, not a perfect one"


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_clips_that_do_not_lie_on_one_another_are_typed_failures(metric):
    edit = noise(1)
    for other, reason, said in (
        (edit[:2], Failure.LENGTH, "3 frames, the source 2"),
        (edit[:, :20], Failure.SIZE, "30x24, the source 30x20"),
        (edit[..., 0], Failure.UNREADABLE, "shape"),
        (edit[:0], Failure.TOO_SHORT, "no pixel"),
    ):
        with pytest.raises(MetricError, match=said) as caught:
            metric("m", edit, other, "source")
        assert caught.value.reason is reason
    for region, reason in (
        (np.zeros(edit.shape[:3], bool), Failure.EMPTY_REGION),
        (np.ones((3, 24, 29), bool), Failure.SIZE),
        (np.ones((2, 24, 30), bool), Failure.LENGTH),
        (np.ones((3, 24, 30), np.uint8), Failure.UNREADABLE),
    ):
        with pytest.raises(MetricError) as caught:
            metric("m", edit, edit, "source", region)
        assert caught.value.reason is reason


def test_a_region_without_a_whole_window_has_no_ssim():
    edit = noise(1)
    thin = np.zeros(edit.shape[:3], bool)
    thin[:, :10] = True
    with pytest.raises(MetricError, match="no whole window") as caught:
        ssim("m", edit, edit, "source", thin)
    assert caught.value.reason is Failure.EMPTY_REGION
    with pytest.raises(MetricError) as caught:
        ssim("m", edit[:, :8], edit[:, :8], "source")
    assert caught.value.reason is Failure.TOO_SMALL
