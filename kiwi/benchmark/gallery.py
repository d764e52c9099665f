"""A choice of edits as files that a browser plays: the best, the median and the worst of each kind, enlarged."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kiwi.benchmark.metrics import SampleMetrics
from kiwi.benchmark.rubric import Frames, Image
from kiwi.benchmark.samples import BenchmarkSample

VIEW_SIDE = 256
RANKS = ("best", "worst", "median")


def choose(
    samples: Sequence[BenchmarkSample], figures: Mapping[str, SampleMetrics], shown_first: int
) -> dict[str, str]:
    """sample_id -> "best", "median" or "worst", one of each for every kind, by the gain over a copy.

    The gain is in dB inside the edit region. The median is looked for among the first `shown_first` samples of a
    kind, which every training stage has edited, so that one can see what each stage added: it is the one of them
    whose gain is nearest to the median of all.
    """
    picks: dict[str, str] = {}
    for kind in dict.fromkeys(sample.kind for sample in samples):
        names = [each.sample_id for each in samples if each.kind == kind and each.sample_id in figures]
        if not names:
            continue
        gains = {name: figures[name].psnr_edit - figures[name].copy_psnr_edit for name in names}
        middle = statistics.median(gains.values())
        picks[min(names[:shown_first], key=lambda name: (abs(gains[name] - middle), name))] = "median"
        ranked = sorted((name for name in names if name not in picks), key=lambda name: (-gains[name], name))
        if ranked:
            picks[ranked[0]] = "best"
            picks.setdefault(ranked[-1], "worst")
    return picks


def choose_by_score(kinds: Mapping[str, str], scores: Mapping[str, float]) -> dict[str, str]:
    """sample_id -> "best", "median" or "worst", one of each for every kind, by overall score.

    Args:
        kinds: the kind of each sample. scores: the overall of those that could be judged.
    """
    picks: dict[str, str] = {}
    for kind in dict.fromkeys(kinds.values()):
        ranked = sorted((name for name in scores if kinds[name] == kind), key=lambda name: (-scores[name], name))
        for name, rank in zip([ranked[:1], ranked[-1:], ranked[len(ranked) // 2 :][:1]], RANKS, strict=True):
            if name:
                picks.setdefault(name[0], rank)
    return picks


@dataclass(frozen=True)
class Exhibit:
    """What is to be looked at of one sample: clips by name, their frames a second, and the reference."""

    clips: Mapping[str, Frames]
    fps: float
    reference: Image | None = None


def show(folder: Path, chosen: Mapping[str, Exhibit], threads: int) -> dict[str, dict[str, Path]]:
    """Writes the clips and the reference of the chosen samples; returns sample_id -> name -> path."""
    from kiwi.media import encode_video, png_bytes

    files: dict[str, dict[str, Path]] = {}
    jobs: list[tuple[Path, Frames, float]] = []
    for name, exhibit in chosen.items():
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        files[name] = {what: home / f"{what}.mp4" for what in exhibit.clips}
        jobs += [(files[name][what], frames, exhibit.fps) for what, frames in exhibit.clips.items()]
        if exhibit.reference is not None:
            files[name]["reference"] = home / "reference.png"
            files[name]["reference"].write_bytes(png_bytes(enlarged(exhibit.reference[None])[0]))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: encode_video(job[0], enlarged(job[1]), job[2]), jobs))
    return files


def enlarged(frames: Frames) -> Frames:
    """Small frames uint8 [T, H, W, 3] enlarged by a whole factor to about 256 pixels on the shorter side."""
    from kiwi.media import resize_frames

    height, width = frames.shape[1:3]
    factor = max(1, VIEW_SIDE // min(height, width))
    return resize_frames(frames, height * factor, width * factor)
