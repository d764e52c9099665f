"""The judge `mllm` against a real vLLM server on the CPU. Its model has random weights: what it answers means nothing,
so the test is about rubrics and pictures being taken, and marks being held to their schema or failing with a type."""

from __future__ import annotations

import numpy as np
import pytest

from kiwi.benchmark.mllm_judge import CATEGORIES, MllmJudge
from kiwi.benchmark.rubric import CRITERIA, FailedMeasurement, JudgeView, Rubric
from kiwi.configuration import BenchmarkSettings, ServiceSettings, VlmSettings
from tests.integration.vllm import vllm_server

__all__ = ["vllm_server"]
pytestmark = [pytest.mark.services, pytest.mark.timeout(1200)]

CLIP = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3), dtype=np.uint8)


def test_every_rubric_is_taken_and_answered_with_capped_marks_or_a_typed_failure(
    vllm_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", vllm_server)
    mllm = VlmSettings(model="tiny", temperature=0.7, max_tokens=500, image_pixels=8192, max_frames=1, passes=2)
    service = ServiceSettings(concurrency=1, attempts=1, timeout=300, cache=False)
    judge = MllmJudge.from_settings(BenchmarkSettings(mllm=mllm, service=service), "unused")
    rubrics: list[Rubric] = ["background" if "background" in category else "subject" for category in CATEGORIES]
    views = [
        JudgeView(CLIP, 255 - CLIP, CLIP[0], rubric, "Add a red hat", None, None, category)
        for rubric, category in zip(rubrics, CATEGORIES, strict=True)
    ]
    found = list(judge.judge_all(views))
    for view, each in zip(views, found, strict=True):
        first, *others = CRITERIA[view.rubric]
        if each.failure is not None:
            assert each.failure.reason == FailedMeasurement.REPLY_INVALID, each.failure
            continue
        assert len(each.repeats) == 2
        assert all(row[name] <= row[first] and row[name] in range(1, 6) for row in each.repeats for name in others)
    assert any(each.scores is not None for each in found), [each.failure for each in found]
    assert judge.spent()["prompt_tokens"] > 7 * 100
