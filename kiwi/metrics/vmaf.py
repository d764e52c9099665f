"""VMAF of an edit against ground truth, by the libvmaf filter of an ffmpeg program that has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kiwi.metrics.frames import THREADS
from kiwi.metrics.results import Failure, Frames, Measured, MetricError, check_alike

PROGRAM = "ffmpeg"
_LOG = "vmaf.json"
_LONGEST = 1800.0  # seconds for one clip


def vmaf(edit: Frames, target: Frames, program: str = PROGRAM, threads: int = THREADS) -> Measured:
    """VMAF points, 0-100, higher is better: the mean over frames of libvmaf's default model (vmaf_v0.6.1).

    Li et al. (2016) and netflix/vmaf. It predicts how people see compression and scaling on a television at three times
    its height, and was not made for edits: use it against ground truth, not against the source. The frames that were
    decoded are handed to ffmpeg by pipes; both clips go through the same conversion to yuv420p.

    Raises:
        MetricError: LENGTH, SIZE; UNAVAILABLE without ffmpeg or its libvmaf; TOOL_FAILED, with what it said.
    """
    check_alike(edit, target, "ground truth")
    if not has_vmaf(program):
        said = f"{program} is not here, or was built without libvmaf"
        raise MetricError(Failure.UNAVAILABLE, said, f"install an ffmpeg whose `{program} -filters` lists libvmaf")
    with tempfile.TemporaryDirectory(prefix="kiwi-") as folder:
        _run(edit, target, program, threads, folder)
        return _read(Path(folder) / _LOG, len(edit))


@lru_cache(maxsize=8)
def has_vmaf(program: str = PROGRAM) -> bool:
    """Whether the program is there and lists the filter libvmaf; asked once in a process."""
    if shutil.which(program) is None:
        return False
    asked = [program, "-hide_banner", "-filters"]
    try:
        listed = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.split()[1:2] == ["libvmaf"] for line in listed.stdout.splitlines())


def _run(edit: Frames, target: Frames, program: str, threads: int, folder: str) -> None:
    """Lets ffmpeg read both clips through pipes, fed by a thread each: libvmaf's first input is the distorted one."""
    ends = [os.pipe(), os.pipe()]
    reading, writing = [end[0] for end in ends], [end[1] for end in ends]
    command = _command(program, edit, reading, threads)
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    try:
        process = subprocess.Popen(command, cwd=folder, pass_fds=reading, stdin=subprocess.DEVNULL, **options)
    except OSError as error:
        for end in (*reading, *writing):
            os.close(end)
        raise MetricError(Failure.TOOL_FAILED, f"{program} cannot be started: {error.strerror}") from error
    for end in reading:
        os.close(end)
    with ThreadPoolExecutor(2) as pool:
        for end, clip in zip(writing, (edit, target), strict=True):
            pool.submit(_feed, end, clip)
        try:
            _, said = process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise MetricError(Failure.TOOL_FAILED, f"{program} did not end within {_LONGEST:.0f} s") from error
    if process.returncode != 0:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise MetricError(Failure.TOOL_FAILED, f"{program} failed ({process.returncode}): {last}")


def _command(program: str, clip: Frames, reading: list[int], threads: int) -> list[str]:
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{clip.shape[2]}x{clip.shape[1]}", "-r", "25"]
    inputs = [part for end in reading for part in (*raw, "-i", f"pipe:{end}")]
    graph = f"[0:v]format=yuv420p[d];[1:v]format=yuv420p[r];[d][r]libvmaf=log_fmt=json:log_path={_LOG}"
    return [program, "-v", "error", *inputs, "-lavfi", f"{graph}:n_threads={threads}", "-f", "null", "-"]


def _feed(end: int, clip: Frames) -> None:
    """Writes a clip's frames; an ffmpeg that ends early closes the pipe, and says why itself."""
    try:
        with open(end, "wb", buffering=0) as pipe:
            for frame in clip:
                left = memoryview(frame.tobytes())
                while len(left):
                    left = left[pipe.write(left) :]
    except BrokenPipeError:
        return


def _read(log: Path, count: int) -> Measured:
    try:
        said = json.loads(log.read_text())
        frames = tuple(float(frame["metrics"]["vmaf"]) for frame in said["frames"])
        version = str(said.get("version", "of unknown version"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MetricError(Failure.TOOL_FAILED, f"libvmaf's log cannot be read: {error!r}") from error
    if len(frames) != count:
        raise MetricError(Failure.TOOL_FAILED, f"libvmaf measured {len(frames)} of {count} frames")
    return Measured("vmaf", float(np.mean(frames)), "points, 0-100", "higher", frames, note=f"libvmaf {version}")
