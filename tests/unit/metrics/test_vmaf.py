"""VMAF through a program that stands in for ffmpeg, and through a real one where it has libvmaf."""

import os
import stat
import sys

import numpy as np
import pytest

from kiwi.metrics.results import Failure, MetricError
from kiwi.metrics.vmaf import has_vmaf, vmaf

FFMPEG = os.environ.get("KIWI_FFMPEG", "ffmpeg")
FAKE = """#!{python}
# A fake ffmpeg: lists libvmaf, reads both pipes to the end, and logs the mean difference of each frame as its VMAF.
import json, os, re, sys
if "-filters" in sys.argv:
    print(" .. libvmaf           VV->V      Calculate the VMAF between two video streams.")
    sys.exit()
mode = {mode!r}
if mode == "dies":
    print("out of luck", file=sys.stderr)
    sys.exit(3)
width, height = map(int, sys.argv[sys.argv.index("-s") + 1].split("x"))
ends = [int(each[5:]) for each in sys.argv if each.startswith("pipe:")]
size, frames = width * height * 3, []
files = [os.fdopen(end, "rb") for end in ends]
while (one := files[0].read(size)) and (other := files[1].read(size)):
    frames.append({{"metrics": {{"vmaf": one[0] - other[0]}}}})
if mode == "short":
    frames.pop()
open(re.search("log_path=([^:]+)", " ".join(sys.argv))[1], "w").write(json.dumps({{"version": "0", "frames": frames}}))
"""


@pytest.fixture
def fake(tmp_path):
    def made(mode=""):
        path = tmp_path / f"ffmpeg-{mode}"
        path.write_text(FAKE.format(python=sys.executable, mode=mode))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return made


def clip(level, count=4, height=180, width=320):
    """Larger than a pipe's buffer, so that a program that read one clip before the other would hang."""
    frames = np.full((count, height, width, 3), level, np.uint8)
    return frames + np.arange(count, dtype=np.uint8)[:, None, None, None]


def test_both_clips_reach_the_program_whole_and_the_edit_is_the_distorted_one(fake):
    found = vmaf(clip(90), clip(50), fake())
    assert found.per_frame == (40, 40, 40, 40)
    assert (found.value, found.direction) == (40, "higher")


@pytest.mark.parametrize(("mode", "said"), [("dies", "out of luck"), ("short", "3 of 4 frames")])
def test_a_program_that_fails_is_a_typed_failure_with_its_words(fake, mode, said):
    with pytest.raises(MetricError, match=said) as caught:
        vmaf(clip(90), clip(50), fake(mode))
    assert caught.value.reason is Failure.TOOL_FAILED


def test_a_program_that_is_not_there_or_has_no_libvmaf_is_unavailable(tmp_path):
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\necho ' ... ssim VV->V Calculate the SSIM, unlike libvmaf'\n")
    bare.chmod(0o755)
    for program in (str(tmp_path / "none"), str(bare)):
        with pytest.raises(MetricError, match="libvmaf") as caught:
            vmaf(clip(1), clip(1), program)
        assert caught.value.reason is Failure.UNAVAILABLE


def test_clips_of_different_lengths_do_not_reach_the_program(fake):
    with pytest.raises(MetricError) as caught:
        vmaf(clip(1), clip(1, 3), fake("dies"))
    assert caught.value.reason is Failure.LENGTH


@pytest.mark.skipif(not has_vmaf(FFMPEG), reason="no ffmpeg with libvmaf (KIWI_FFMPEG names one)")
@pytest.mark.parametrize("size", [(180, 320), (91, 131)])
def test_the_real_filter_gives_the_truth_more_than_a_blurred_copy(size):
    import cv2

    rng = np.random.default_rng(0)
    truth = np.stack([cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), np.uint8), (0, 0), 2) for _ in range(3)])
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in truth])
    same, worse = vmaf(truth, truth, FFMPEG), vmaf(blurred, truth, FFMPEG)
    assert len(same.per_frame) == 3
    assert same.value > 90 > worse.value >= 0
