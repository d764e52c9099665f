"""The curators that ask a model, against a real vLLM server on the CPU. Its model has random weights: what it answers
means nothing, so the tests are about requests being taken, replies being held to their schema, and typed outcomes.

Minutes on a busy machine; the first one installs the server. Requests go one at a time, for vLLM's CPU build (0.32.0)
dies when a prompt with a seed is read in more than one piece, as prompts that come together may be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, Field

from kiwi.configuration import ServiceSettings, VlmSettings
from kiwi.curation.curators.protocols import GroundRequest, ScoreRequest, VerifyRequest
from kiwi.curation.curators.vlm_ground import Regions, VlmGrounder
from kiwi.curation.curators.vlm_score import VlmScorer
from kiwi.curation.curators.vlm_verify import VlmVerifier
from kiwi.dataset.schema import Reason, Task
from kiwi.services import Patience, Picture, Question, ServiceError, VlmClient, endpoint_of
from tests.integration.vllm import vllm_server

__all__ = ["vllm_server"]
pytestmark = [pytest.mark.services, pytest.mark.timeout(1200)]

SERVICE = ServiceSettings(concurrency=1, attempts=1, timeout=300)
PROMPT = "Add a red rectangle"
CLIP = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3), dtype=np.uint8)


class Short(BaseModel):
    """A reply of few tokens, so that tests take seconds."""

    colour: str = Field(max_length=8)
    marks: list[int] = Field(min_length=2, max_length=2)
    sure: bool


@pytest.fixture
def address(vllm_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KIWI_VLM_BASE_URL", vllm_server)
    monkeypatch.setenv("KIWI_VLM_CANARY", "off")
    return vllm_server


def settings(**changes: Any) -> VlmSettings:
    return VlmSettings(**{"model": "tiny", "temperature": 0.7, "max_tokens": 400, "image_pixels": 8192, **changes})


def ask(*questions: Question, cache: Path | None = None) -> Any:
    client = VlmClient(endpoint_of, Patience.from_settings(SERVICE), str(cache) if cache else None)
    return list(client.ask(questions)), client.usage


def test_pictures_are_taken_replies_fit_the_schema_and_tokens_are_counted(address: str, tmp_path: Path) -> None:
    question = Question((Picture(CLIP[0]), Picture(CLIP[1]), "colour?"), "tiny", Short, 0.7, max_tokens=200, n=2)
    (reply,), usage = ask(question, cache=tmp_path)
    assert reply.failure is None, reply.failure
    assert all(isinstance(value, Short) and len(value.marks) == 2 for value in reply.values)
    assert reply.texts[0] != reply.texts[1], "both answers of an ensemble came from one seed"
    assert reply.tokens.prompt > 12  # 2 x 6 patches of 32 pixels
    assert usage.prompt_tokens == reply.tokens.prompt
    (again,), usage = ask(question, cache=tmp_path)
    assert (again.texts, again.cached, usage.requests) == (reply.texts, True, 0)


def test_the_same_seed_gives_the_same_answer_and_the_kth_of_an_ensemble_has_the_seed_plus_k(address: str) -> None:
    parts = (Picture(CLIP[0]), "colour?")
    (both, first, second), _ = ask(
        Question(parts, "tiny", Short, 0.7, 5, 200, n=2),
        Question(parts, "tiny", Short, 0.7, 5, 200),
        Question(parts, "tiny", Short, 0.7, 6, 200),
    )
    assert both.texts == (first.text, second.text)


def test_the_scorer_gives_a_score_of_the_scale_or_a_typed_failure(address: str) -> None:
    scorer = VlmScorer.from_settings(settings(), SERVICE, None, sample_fps=2.0)
    request = ScoreRequest("a", CLIP[:1], 255 - CLIP[:1], PROMPT, Task.LOCAL_ADD)
    (score,) = scorer.score([request])
    if score.reason is None:
        assert score.overall is not None
        assert 0 <= score.overall <= 10
        assert set(score.measures) == set(scorer.measures)
    else:
        assert score.reason is Reason.REPLY_UNUSABLE, score.detail
        assert (score.overall, score.measures) == (None, {})
    assert score.name == "vlm_score"


def test_every_reply_of_the_grounder_fits_its_schema(address: str) -> None:
    grounder = VlmGrounder.from_settings(settings(), SERVICE, None, 0.0, 1.0)
    (found,) = grounder.ground([GroundRequest("a", CLIP[0], CLIP[1], PROMPT, Task.LOCAL_ADD)])
    assert found.reason in (None, Reason.NO_REGION, Reason.REPLY_UNUSABLE), found.detail
    assert "no JSON" not in found.detail or "cut off" in found.detail
    assert Regions.model_json_schema()["properties"]["objects"]["maxItems"] == 8


def test_the_verifier_gives_a_consistency_or_a_typed_failure(address: str) -> None:
    verifier = VlmVerifier.from_settings(settings(), SERVICE, None, 0.5)
    request = VerifyRequest("a", CLIP[0], CLIP[0], CLIP[1], None, "object", PROMPT, Task.LOCAL_ADD)
    (found,) = verifier.verify([request])
    assert found.consistency is not None or found.reason is Reason.REPLY_UNUSABLE, found.detail


def test_the_canary_finds_out_a_model_that_cannot_see(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_VLM_CANARY", "on")
    grounder = VlmGrounder.from_settings(settings(), SERVICE, None, 0.0, 1.0)
    with pytest.raises(ServiceError, match="canary"):
        list(grounder.ground([GroundRequest("a", CLIP[0], CLIP[1], PROMPT, Task.LOCAL_ADD)]))


def test_a_prompt_over_the_context_is_refused_with_the_servers_words(address: str) -> None:
    (reply,), _ = ask(Question(("red " * 9000,), "tiny", Short, max_tokens=50))
    assert reply.failure is not None
    assert reply.failure.kind == "refused"
    assert "4096" in reply.failure.detail


def test_another_models_name_is_told_with_the_one_that_is_served(address: str) -> None:
    with pytest.raises(ServiceError, match="served: tiny"):
        ask(Question(("red",), "large", Short))
