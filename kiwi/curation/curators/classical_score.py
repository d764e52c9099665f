"""The classical scorer: a heuristic of measured quantities, 0-10. It cannot judge whether an instruction was followed.

It asks whether there is an edit at all, whether what was not edited stayed as it was, and whether the target is as
sharp and as steady as its source. It is called heuristic_score, and never by the name of a model's score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from kiwi.curation.curators.classical_change import (
    VISIBLE,
    ChangeMap,
    Plane,
    change_map,
    edge_agreement,
    kept_foreground,
)
from kiwi.curation.curators.one_by_one import one_by_one
from kiwi.curation.curators.protocols import Frames, Score, ScoreRequest
from kiwi.dataset.schema import Reason, Task

WHOLE_FRAME = (Task.GLOBAL_STYLE, Task.BACKGROUND_CHANGE)
LOOKS = 3  # frames compared pixel by pixel: first, middle, last; a short clip's first and last
STEPS = 24  # at most so many neighbouring frames enter the flicker
SMALL = 96  # shorter side at which sharpness and flicker are measured


@dataclass(frozen=True)
class ClassicalScorer:
    """overall = 10 · the product of five factors in 0-1, each 1 where nothing is wrong.

    present: the edit changes something that can be seen (0.05% of the frame gives nothing, 0.2% gives all).
    outside: what an edit should leave alone stays within re-encoding noise (2 Lab), and loses e^-1 for every 4 Lab
        beyond; styles, backgrounds and edits of half the frame are let off, those of 30% to 50% in part.
    related: some structure or some region of the source survives; two unrelated clips have neither.
    sharpness: how fine the target's edges are against the source's, full from 0.6 of it on.
    steadiness: flicker beyond the source's, in Lab a frame, contrast allowed for; loses e^-1 for every 6 beyond 1.
    """

    name: str = "classical"
    version: str = "2"
    sample_fps: float | None = None
    measures: tuple[str, ...] = (
        "present", "outside", "related", "sharpness", "steadiness",
        "changed_share", "quiet_change", "sharpness_ratio", "flicker",
    )  # fmt: skip

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """See protocols."""
        return one_by_one(self._score, Score, requests)

    def _score(self, request: ScoreRequest) -> Score:
        return self.score_pair(request.source, request.target, request.task)

    def score_pair(self, source: Frames, target: Frames, task: Task) -> Score:
        """One pair, uint8 [T,H,W,3] each. NO_VISIBLE_EDIT where no compared frame differs visibly."""
        count = min(len(source), len(target))
        looks = LOOKS if count > 16 else 2
        picks = sorted({round(index * (count - 1) / (looks - 1)) for index in range(looks)})
        changes = [change_map(source[pick], target[pick], registered=False) for pick in picks]
        share = max(float((change.delta > VISIBLE).mean()) for change in changes)
        quiet = float(np.mean([np.percentile(change.delta, 40) for change in changes]))
        spread = float(np.mean([(change.delta > VISIBLE).mean() for change in changes]))
        local = spread < 0.5
        confined = 0.0 if task in WHOLE_FRAME else float(np.clip((0.5 - spread) / 0.2, 0.0, 1.0))
        kept = 0.0 if local else max(float(kept_foreground(change).mean()) for change in changes)
        edges = 0.0 if local else float(np.mean([edge_agreement(source[pick], target[pick]) for pick in picks]))
        ratio, flicker = _texture_and_time(source[:count], target[:count])
        factors = {
            "present": float(np.clip((share - 0.0005) / 0.0015, 0.0, 1.0)),
            "outside": float(np.exp(-max(quiet - 2.0, 0.0) / 4.0 * confined)),
            "related": 1.0 if local else _relatedness(changes, kept, edges),
            "sharpness": float(np.clip(ratio / 0.6, 0.0, 1.0)),
            "steadiness": float(np.exp(-max(flicker - 1.0, 0.0) / 6.0)),
        }
        overall = 10.0 * float(np.prod(list(factors.values())))
        measures = factors | {
            "changed_share": share, "quiet_change": quiet, "sharpness_ratio": ratio, "flicker": flicker
        }  # fmt: skip
        if factors["present"] == 0.0:
            detail = f"at most {share:.5f} of a frame differs visibly"
            return Score(measures, Reason.NO_VISIBLE_EDIT, detail, overall, "heuristic_score")
        return Score(measures, None, "", overall, "heuristic_score")


def _relatedness(changes: list[ChangeMap], kept: float, edges: float) -> float:
    """0-1 from the mean structure, its absolute value (an inverted picture has -1), the kept share, and the edges.

    Of 306 pairings of unrelated real clips 95% lie under a structure of 0.12, a kept share of 0.05 and an agreement of
    edges of 0.17, and none above 0.26 in the last; the weakest of true edits of the whole frame has a structure of 0.18
    and a kept share of 0.08. Flat drawings with swapped colours have an agreement of edges of 0.79 and more.
    """
    signed = np.mean([np.average(change.structure, weights=change.texture + 1e-3) for change in changes])
    absolute = np.mean([np.average(np.abs(change.structure), weights=change.texture + 1e-3) for change in changes])
    best = max((signed - 0.08) / 0.08, (absolute - 0.45) / 0.15, (kept - 0.02) / 0.03, (edges - 0.35) / 0.25)
    return float(np.clip(best, 0.0, 1.0))


def _texture_and_time(source: Frames, target: Frames) -> tuple[float, float]:
    """(sharpness of target over source, flicker beyond the source's in lightness a frame), at a small size."""
    start = max(0, (len(source) - STEPS) // 2)
    grey_source, grey_target = _grey(source[start : start + STEPS]), _grey(target[start : start + STEPS])
    ratio = _fineness(grey_target[::8]) / max(_fineness(grey_source[::8]), 1e-3)
    if len(grey_source) < 3:
        return ratio, 0.0
    gain = float(np.clip(grey_target.std() / max(float(grey_source.std()), 1e-3), 1.0, 2.0))
    flicker = _unsteadiness(grey_target) - _unsteadiness(grey_source) * gain
    return ratio, float(max(flicker, 0.0))


def _fineness(grey: Plane) -> float:
    """Fine against coarse contrast along the strongest edges. A blur lowers it; new colours do not."""
    shares = []
    for plane in grey:
        fine = _strongest(plane - cv2.GaussianBlur(plane, (0, 0), 1.0))
        coarse = _strongest(plane - cv2.GaussianBlur(plane, (0, 0), 4.0))
        shares.append(fine / (coarse + 0.5))
    return float(np.mean(shares))


def _strongest(edges: Plane) -> float:
    """Mean of the strongest twentieth."""
    values = np.abs(edges).ravel()
    first = values.size - values.size // 20 - 1
    return float(np.partition(values, first)[first:].mean())


def _unsteadiness(grey: Plane) -> float:
    """Mean |f[t-1] - 2 f[t] + f[t+1]|: nothing for steady light and steady motion of smooth things."""
    return float(np.abs(grey[:-2] - 2.0 * grey[1:-1] + grey[2:]).mean())


def _grey(frames: Frames) -> Plane:
    """Lightness-like planes float32 [T,h,w], 0-100, the shorter side at most SMALL pixels."""
    count, height, width = frames.shape[:3]
    scale = min(1.0, SMALL / min(height, width))
    if scale == 1.0:
        tall = cv2.cvtColor(np.ascontiguousarray(frames).reshape(count * height, width, 3), cv2.COLOR_RGB2GRAY)
        return np.asarray(tall.reshape(count, height, width), np.float32) * np.float32(100.0 / 255.0)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    small = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in grey]
    return np.asarray(np.stack(small), np.float32) * np.float32(100.0 / 255.0)
