"""The judge `mllm`: a multimodal model behind any OpenAI-compatible server, asked with our own rubric texts.

It sees frames of source and edit side by side and the reference, never the ground truth. Each answer holds three whole
marks of 1-5; the cap is enforced on each of them (kiwi/benchmark/rubric.py), and a sample's score is their mean over
repeats. An answer that cannot be used is asked for again from other seeds, and then is a typed failure: no score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from kiwi.benchmark.averages import equal_weight
from kiwi.benchmark.rubric import (
    CRITERIA,
    REFERENCE_CATEGORIES,
    Category,
    FailedMeasurement,
    Judgement,
    JudgeView,
    MeasurementError,
    Rubric,
    apply_cap,
)
from kiwi.configuration import BenchmarkSettings, VlmSettings
from kiwi.curation.curators.vlm_asking import version_of
from kiwi.media.timing import evenly
from kiwi.services import Inquiry, Patience, Picture, Question, Reply, Usage, VlmClient, ask_about, endpoint_of
from kiwi.services.pictures import layout
from kiwi.services.prompts import filled, read_prompts
from kiwi.services.questions import FailureKind, Part
from kiwi.services.subjects import Asker

RUBRICS = Path(__file__).parent / "rubrics" / "v1"
CATEGORIES: tuple[Category, ...] = get_args(Category)
PLACES = ("first", "second", "third")
REASONS: dict[FailureKind, FailedMeasurement] = {
    "refused": FailedMeasurement.REQUEST_REFUSED,
    "unusable": FailedMeasurement.REPLY_INVALID,
    "picture": FailedMeasurement.PICTURE_INVALID,
}
MILLION = 1e6
REVISION = "2"  # of what the model is shown beside the rubrics: raise it where that changes

# What stands in the schema holds a model to the point; an overlong reason makes no mark unusable.
Reasoning = Annotated[str, WithJsonSchema({"type": "string", "maxLength": 1000})]
Mark = Annotated[int, Field(ge=1, le=5)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": False})


class Client(Asker, Protocol):
    """What is used of kiwi.services.VlmClient."""

    @property
    def usage(self) -> Usage: ...


@dataclass(frozen=True)
class MllmJudge:
    """See above. `prices`: for a million tokens read and a million written."""

    client: Client
    settings: VlmSettings
    rubrics: dict[str, str]
    name: str
    prices: tuple[float, float] | None = None
    exact: bool = False

    @classmethod
    def from_settings(cls, settings: BenchmarkSettings, cache: str) -> MllmJudge:
        """Reads the rubrics, and nothing else. `cache`: where replies are kept.

        The name holds the model and a hash of the rubrics' text and of every setting that an answer depends on: scores
        compare only where all of that is the same.
        """
        asked, service = settings.mllm, settings.service
        rubrics = read_prompts(asked.prompt, RUBRICS, CATEGORIES)
        name = f"mllm/{version_of(REVISION, asked, rubrics)}"
        kept = cache if service.cache else None
        client = VlmClient(lambda: endpoint_of("judge"), Patience.from_settings(service), kept, "judge")
        return cls(client, asked, rubrics, name, settings.prices)

    def judge_all(self, views: Iterable[JudgeView]) -> Iterator[Judgement]:
        """See kiwi.benchmark.rubric.Judge. Raises ServiceError where the server cannot be used; what it answered is
        kept, so judging goes on from there."""
        return ask_about(self.client, views, self._inquiry, _stumbled)

    def spent(self) -> dict[str, Any]:
        """Requests and tokens of this judge so far, and their price where prices are set. Kept replies cost nothing."""
        usage = asdict(self.client.usage)
        if self.prices is None:
            return usage
        read, written = self.prices
        cost = (usage["prompt_tokens"] * read + usage["completion_tokens"] * written) / MILLION
        return usage | {"cost": round(cost, 6)}

    def _inquiry(self, view: JudgeView) -> Inquiry[Judgement]:
        rubric, asked = view.rubric, self.settings
        names = dict(zip(PLACES, CRITERIA[rubric], strict=True))
        text = filled(self.rubrics[view.category], {"instruction": view.prompt, **names})
        parts = (text, *self._pictures(view))
        schema = marks_of(rubric)
        question = Question(parts, asked.model, schema, asked.temperature, asked.seed, asked.max_tokens, n=asked.passes)
        return Inquiry((question,), lambda replies: judged(replies[0], rubric))

    def _pictures(self, view: JudgeView) -> Iterator[Part]:
        if view.reference is not None and view.category in REFERENCE_CATEGORIES.values():
            yield "The reference picture:"
            height, width = view.reference.shape[:2]
            yield Picture(view.reference, layout(height, width, self.settings.image_pixels).draw)
        height, width = view.source.shape[1:3]
        shown = layout(height, width, self.settings.image_pixels)
        for number, pick in enumerate(evenly(len(view.source), self.settings.max_frames), 1):
            before = Picture(view.source[pick].copy(), shown.draw)  # a copy, so that a waiting frame holds no clip
            same = np.array_equal(view.source[pick], view.edit[pick])  # as in a copy of the source: encoded once
            yield f"Frame {number} before:"
            yield before
            yield f"Frame {number} after:"
            yield before if same else Picture(view.edit[pick].copy(), shown.draw)


def judged(reply: Reply, rubric: Rubric) -> Judgement:
    """The capped scores of a reply, or its typed failure."""
    if reply.failure is not None:
        return Judgement(None, failure=MeasurementError(REASONS[reply.failure.kind], reply.failure.detail))
    names = CRITERIA[rubric]
    try:
        repeats = tuple(apply_cap({name: getattr(value, name) for name in names}, rubric) for value in reply.values)
    except MeasurementError as failure:
        return Judgement(None, failure=failure)
    return Judgement({name: equal_weight(row[name] for row in repeats) for name in names}, repeats)


@cache
def marks_of(rubric: Rubric) -> type[BaseModel]:
    """The answer's form: a reason, then a whole mark of 1-5 for each criterion of the rubric."""
    marks: dict[str, Any] = dict.fromkeys(CRITERIA[rubric], (Mark, ...))
    made: type[BaseModel] = create_model(f"{rubric}_marks", __base__=_Answer, reasoning=(Reasoning, ...), **marks)
    return made


def _stumbled(error: Exception) -> Judgement:
    said = f"{type(error).__name__}: {error}"
    return Judgement(None, failure=MeasurementError(FailedMeasurement.JUDGE_ERROR, said))
