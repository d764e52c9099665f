"""The scorer that asks a vision-language model: EditScore's protocol over the frames of a clip.

Each pair of frames gets two questions. Semantic consistency, with both frames: was the request carried out, and was the
rest left alone. Perceptual quality, with the edited frame only: is it natural, and free of flaws. Each gives two marks
of 0-25, shown as 0-10. A frame's score is the mean, over passes, of sqrt(min(semantic) · min(quality)); a clip's is the
mean over its frames, as the paper's (section 3.2) authors do it. It is called editscore only where an EditScore model
is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from kiwi.configuration import ServiceSettings, VlmSettings
from kiwi.curation.curators.protocols import Score, ScoreRequest
from kiwi.curation.curators.vlm_asking import (
    PROMPTS,
    REVISION,
    Answer,
    Reasoning,
    client_of,
    failed_as,
    mean,
    spread,
    stumbled_over,
    version_of,
    whole,
)
from kiwi.media.timing import evenly
from kiwi.services import Inquiry, Picture, Question, Reply, ask_about
from kiwi.services.pictures import layout
from kiwi.services.prompts import filled, read_prompts
from kiwi.services.subjects import Asker

SCALE = 25
SEMANTIC, QUALITY = "score_semantic", "score_quality"
Points = Annotated[float, Field(ge=0, le=SCALE, allow_inf_nan=False), whole(0, SCALE)]


class Marks(Answer):
    """EditScore's own format: a reason, then two marks."""

    reasoning: Reasoning
    score: list[Points] = Field(min_length=2, max_length=2)


@dataclass(frozen=True)
class VlmScorer:
    """See above. A frame without a usable reply fails its row: there is no mean over what is left.

    Attributes:
        name: "vlm"; the score itself is "editscore" or "vlm_score".
    """

    client: Asker
    settings: VlmSettings
    prompts: dict[str, str]
    sample_fps: float | None
    version: str
    name: str = "vlm"
    measures: tuple[str, ...] = (
        "semantic", "quality", "prompt_following", "consistency", "naturalness", "artifacts",
        "lowest", "spread", "pass_spread", "frames", "passes",
    )  # fmt: skip

    @classmethod
    def from_settings(
        cls, settings: VlmSettings, service: ServiceSettings, cache: str | None, *, sample_fps: float | None
    ) -> VlmScorer:
        """Reads the prompts, and nothing else. `cache`: where replies are kept; None keeps none."""
        prompts = read_prompts(settings.prompt, PROMPTS, (SEMANTIC, QUALITY))
        version = version_of(REVISION, settings, prompts, sample_fps)
        return cls(client_of("score", version, service, cache), settings, prompts, sample_fps, version)

    @property
    def score_name(self) -> str:
        return "editscore" if "editscore" in self.settings.model.lower() else "vlm_score"

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """See protocols."""
        return ask_about(self.client, requests, self._inquiry, lambda error: Score(**stumbled_over(error)))

    def _inquiry(self, request: ScoreRequest) -> Inquiry[Score]:
        count = min(len(request.source), len(request.target))
        if count == 0:
            raise ValueError("a clip without frames")
        picks = evenly(count, self.settings.max_frames)
        height, width = request.source.shape[1:3]
        shown = layout(height, width, self.settings.image_pixels)
        semantic = filled(self.prompts[SEMANTIC], {"instruction": request.prompt})
        questions = []
        for pick in picks:
            source = Picture(request.source[pick], shown.draw)
            target = Picture(request.target[pick], shown.draw)
            questions += [self._question(source, target, semantic), self._question(target, self.prompts[QUALITY])]
        return Inquiry(tuple(questions), lambda replies: self._judged(picks, replies))

    def _question(self, *parts: str | Picture) -> Question:
        asked = self.settings
        return Question(parts, asked.model, Marks, asked.temperature, asked.seed, asked.max_tokens, asked.passes)

    def _judged(self, picks: list[int], replies: list[Reply]) -> Score:
        for pick, reply in zip(np.repeat(picks, 2), replies, strict=True):
            if reply.failure is not None:
                return Score(**failed_as(reply.failure, f"frame {pick}: "), name=self.score_name)
        marks = [[answer.score for answer in reply.values] for reply in replies]
        return Score(_measures(marks[::2], marks[1::2]), overall=_overall(marks), name=self.score_name)


def _frame_scores(semantic: list[list[list[float]]], quality: list[list[list[float]]]) -> list[list[float]]:
    """[frame][pass] of sqrt(min · min), 0-10."""
    return [
        [math.sqrt(min(one) * min(other)) * 10 / SCALE for one, other in zip(passes, others, strict=True)]
        for passes, others in zip(semantic, quality, strict=True)
    ]


def _overall(marks: list[list[list[float]]]) -> float:
    return mean([mean(passes) for passes in _frame_scores(marks[::2], marks[1::2])])


def _measures(semantic: list[list[list[float]]], quality: list[list[list[float]]]) -> dict[str, float]:
    """Figures of 0-10 over all frames and passes, [frame][pass][mark] each."""
    scores = _frame_scores(semantic, quality)
    frames = [mean(passes) for passes in scores]
    one, other = np.array(semantic) * 10 / SCALE, np.array(quality) * 10 / SCALE
    return {
        "semantic": float(one.min(2).mean()),
        "quality": float(other.min(2).mean()),
        "prompt_following": float(one[..., 0].mean()),
        "consistency": float(one[..., 1].mean()),
        "naturalness": float(other[..., 0].mean()),
        "artifacts": float(other[..., 1].mean()),
        "lowest": min(frames),
        "spread": spread(frames),
        "pass_spread": mean([spread(passes) for passes in scores]),
        "frames": float(len(frames)),
        "passes": float(len(scores[0])),
    }
