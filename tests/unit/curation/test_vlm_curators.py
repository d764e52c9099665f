"""Curators that ask a model: what they ask, what they make of the answers, and that no failure becomes a number.

They talk over real HTTP to a FAKE server whose replies the test writes; tests/integration asks a real one.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from kiwi.configuration import CurationSettings, ServiceSettings, VlmSettings
from kiwi.curation.curators import registry
from kiwi.curation.curators.protocols import GroundRequest, ScoreRequest, VerifyRequest
from kiwi.curation.curators.vlm_ground import VlmGrounder
from kiwi.curation.curators.vlm_score import VlmScorer, evenly
from kiwi.curation.curators.vlm_verify import VlmVerifier
from kiwi.dataset.schema import Reason, Task
from kiwi.errors import UsageError
from kiwi.services import ServiceError
from kiwi.services.canary import BOX, HEIGHT, WIDTH
from tests.unit.services.scripted_server import (
    MODEL,
    Said,
    ScriptedServer,
    chat,
    error,
    pictures_of,
    question_of,
    serving,
)

SERVICE = ServiceSettings(concurrency=8, attempts=2, timeout=5)
PROMPT = "Replace the dog by a cat"
Script = Callable[[dict[str, Any]], Said]


@pytest.fixture(autouse=True)
def no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor any address of this machine's environment."""
    for name in [name for name in os.environ if name.startswith("KIWI_VLM")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KIWI_VLM_CANARY", "off")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], ScriptedServer]]:
    """Starts a scripted server and points every stage at it."""
    running = []

    def run(script: Script) -> ScriptedServer:
        context = serving(script)
        running.append(context)
        server = context.__enter__()
        monkeypatch.setenv("KIWI_VLM_BASE_URL", server.address)
        return server

    yield run
    for context in running:
        context.__exit__(None, None, None)


def settings(**changes: Any) -> VlmSettings:
    return VlmSettings(**{"model": MODEL, "temperature": 0.7, "image_pixels": 10_000, **changes})


def scorer(cache: Path | None = None, **changes: Any) -> VlmScorer:
    return VlmScorer.from_settings(settings(**changes), SERVICE, str(cache) if cache else None, sample_fps=2.0)


def grounder(low: float = 0.002, high: float = 0.85, **changes: Any) -> VlmGrounder:
    return VlmGrounder.from_settings(settings(**changes), SERVICE, None, low, high)


def verifier(**changes: Any) -> VlmVerifier:
    return VlmVerifier.from_settings(settings(**changes), SERVICE, None, 0.5)


def clip(frames: int, value: int = 100, height: int = 72, width: int = 96) -> Any:
    """Frames of one grey each, 1 brighter from frame to frame, so that a picture tells which frame it is."""
    return np.stack([np.full((height, width, 3), value + number, np.uint8) for number in range(frames)])


def scored(frames: int = 2, iid: str = "a", **changes: Any) -> ScoreRequest:
    return ScoreRequest(
        iid, clip(frames, 50), changes.pop("target", clip(frames, 150)), PROMPT, Task.LOCAL_CHANGE, **changes
    )


def grey(picture: bytes) -> int:
    return round(float(np.asarray(Pillow.open(io.BytesIO(picture))).mean()))


def marks(one: float, other: float) -> str:
    return json.dumps({"reasoning": "because", "score": [one, other]})


def marking(semantic: tuple[float, float], quality: tuple[float, float]) -> Script:
    return lambda body: chat(*[marks(*(semantic if len(pictures_of(body)) == 2 else quality))] * body.get("n", 1))


def test_a_score_is_the_geometric_mean_of_the_weaker_marks(start: Callable[[Script], ScriptedServer]) -> None:
    server = start(marking((20, 15), (25, 10)))
    (score,) = scorer().score([scored(frames=2)])
    assert score.overall == pytest.approx(math.sqrt(6.0 * 4.0))
    assert score.reason is None
    assert score.measures == pytest.approx(
        {
            "semantic": 6.0, "quality": 4.0, "prompt_following": 8.0, "consistency": 6.0, "naturalness": 10.0,
            "artifacts": 4.0, "lowest": math.sqrt(24), "spread": 0.0, "pass_spread": 0.0, "frames": 2.0, "passes": 1.0,
        }
    )  # fmt: skip
    assert set(score.measures) == set(scorer().measures)
    assert len(server.seen) == 4


def test_quality_is_judged_without_the_source_and_consistency_with_both(
    start: Callable[[Script], ScriptedServer],
) -> None:
    server = start(marking((20, 20), (20, 20)))
    list(scorer().score([scored(frames=1)]))
    shown = sorted([grey(picture) for picture in pictures_of(body)] for body in server.seen)
    assert shown == [[50, 150], [150]]
    both, one = sorted((question_of(body) for body in server.seen), key=lambda text: PROMPT not in text)
    assert PROMPT in both
    assert PROMPT not in one
    assert all(re.search("<[a-z]+>", text) is None for text in (both, one))
    assert {body["temperature"] for body in server.seen} == {0.7}


def test_overall_is_the_mean_over_frames_of_the_mean_over_passes(start: Callable[[Script], ScriptedServer]) -> None:
    def script(body: dict[str, Any]) -> Said:
        if len(pictures_of(body)) == 1:
            return chat(marks(25, 25), marks(25, 25))
        return (
            chat(marks(25, 25), marks(16, 25)) if grey(pictures_of(body)[1]) == 150 else chat(marks(9, 25), marks(0, 9))
        )

    start(script)
    (score,) = scorer(passes=2).score([scored(frames=2)])
    first, second = (10 + 8) / 2, (6 + 0) / 2
    assert score.overall == pytest.approx((first + second) / 2)
    assert score.measures["spread"] == pytest.approx(statistics.pstdev([first, second]))
    assert score.measures["pass_spread"] == pytest.approx((1 + 3) / 2)
    assert score.measures["lowest"] == pytest.approx(second)
    assert score.measures["passes"] == 2


@pytest.mark.parametrize(
    ("count", "most", "picks"), [(3, 16, [0, 1, 2]), (9, 3, [0, 4, 8]), (5, 1, [0]), (100, 4, [0, 33, 66, 99])]
)
def test_frames_are_taken_evenly(count: int, most: int, picks: list[int]) -> None:
    assert evenly(count, most) == picks


def test_a_clip_one_frame_shorter_is_scored_over_what_both_have(start: Callable[[Script], ScriptedServer]) -> None:
    start(marking((20, 20), (20, 20)))
    (score,) = scorer().score([scored(frames=4, target=clip(3, 150))])
    assert score.measures["frames"] == 3


def test_a_target_of_another_size_is_shown_at_the_sources(start: Callable[[Script], ScriptedServer]) -> None:
    server = start(marking((20, 20), (20, 20)))
    list(scorer().score([scored(frames=1, target=clip(1, 150, 144, 192))]))
    sizes = {Pillow.open(io.BytesIO(picture)).size for body in server.seen for picture in pictures_of(body)}
    assert sizes == {(96, 72)}


@pytest.mark.parametrize(
    "reply", ["I'm sorry, but I can't assist with that request.", marks(26, 10), marks(-1, 3), '{"score": [1]}', ""]
)
def test_one_frame_without_a_usable_reply_fails_the_row_and_gives_no_number(
    reply: str, start: Callable[[Script], ScriptedServer]
) -> None:
    def script(body: dict[str, Any]) -> Said:
        bad = len(pictures_of(body)) == 2 and grey(pictures_of(body)[1]) == 151
        return chat(reply if bad else marks(20, 20))

    start(script)
    scores = list(scorer().score([scored(2, "a"), scored(1, "b")]))
    assert (scores[0].reason, scores[0].overall, scores[0].measures) == (Reason.REPLY_UNUSABLE, None, {})
    assert "frame 1" in scores[0].detail
    assert scores[1].overall == 8.0


def test_a_refused_request_fails_its_row(start: Callable[[Script], ScriptedServer]) -> None:
    start(lambda body: error(400, "context too long") if len(pictures_of(body)) == 2 else chat(marks(20, 20)))
    (score,) = scorer().score([scored()])
    assert (score.reason, score.overall) == (Reason.REQUEST_REFUSED, None)
    assert "context too long" in score.detail


def test_a_server_that_is_away_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_VLM_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ServiceError, match="no connection"):
        list(scorer().score([scored()]))


def test_no_address_is_told_when_the_first_question_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIWI_VLM_BASE_URL", raising=False)
    asked = scorer()
    with pytest.raises(UsageError, match="KIWI_VLM_BASE_URL is not set"):
        list(asked.score([scored()]))


def test_what_cannot_be_shown_is_that_rows_failure_and_keeps_its_place(
    start: Callable[[Script], ScriptedServer],
) -> None:
    start(marking((20, 20), (20, 20)))
    empty = scored(target=clip(1)[:0])
    wrong = ScoreRequest("x", clip(1)[..., 0], clip(1)[..., 0], PROMPT, Task.OTHER)
    answers = list(scorer().score([empty, scored(), wrong, scored(), empty]))
    assert [answer.reason for answer in answers] == [
        Reason.CURATOR_ERROR, None, Reason.CURATOR_ERROR, None, Reason.CURATOR_ERROR
    ]  # fmt: skip


def test_a_stage_that_runs_again_asks_nothing(start: Callable[[Script], ScriptedServer], tmp_path: Path) -> None:
    server = start(marking((20, 15), (25, 10)))
    requests = [scored(2, f"{number}", target=clip(2, 100 + number)) for number in range(5)]
    first = list(scorer(tmp_path).score(requests))
    asked = len(server.seen)
    assert list(scorer(tmp_path).score(requests)) == first
    assert len(server.seen) == asked == 20


@pytest.mark.parametrize(
    ("model", "name"),
    [("EditScore-Qwen3-VL-8B-Instruct", "editscore"), ("org/EditScore-7B", "editscore"), ("Qwen3-VL-32B", "vlm_score")],
)
def test_a_score_bears_editscores_name_only_where_that_model_is_asked(model: str, name: str) -> None:
    assert scorer(model=model).score_name == name


def test_the_version_names_the_model_and_changes_with_whatever_an_answer_depends_on(tmp_path: Path) -> None:
    for name in ("score_semantic", "score_quality"):
        (tmp_path / f"{name}.txt").write_text("Judge this: <instruction>")
    changed = [
        scorer(), scorer(prompt=str(tmp_path)), scorer(passes=2), scorer(seed=1), scorer(temperature=0.0),
        scorer(max_frames=4), scorer(image_pixels=5000), scorer(max_tokens=99), scorer(model="other"),
    ]  # fmt: skip
    versions = [curator.version for curator in changed]
    assert len(set(versions)) == len(versions)
    assert scorer().version == versions[0]
    assert MODEL in versions[0]


def test_prompts_of_ones_own_are_asked(start: Callable[[Script], ScriptedServer], tmp_path: Path) -> None:
    (tmp_path / "score_semantic.txt").write_text("My own: <instruction>")
    (tmp_path / "score_quality.txt").write_text("My own quality")
    server = start(marking((20, 20), (20, 20)))
    list(scorer(prompt=str(tmp_path)).score([scored(1)]))
    assert {question_of(body) for body in server.seen} == {f"My own: {PROMPT}", "My own quality"}


def grounded(task: Task = Task.LOCAL_CHANGE, height: int = 72, width: int = 96) -> GroundRequest:
    source, target = clip(1, 50, height, width)[0], clip(1, 150, height, width)[0]
    return GroundRequest("a", source, target, PROMPT, task)


def boxes(*corners: tuple[int, int, int, int]) -> str:
    return json.dumps({"objects": [{"bbox_2d": list(box), "label": "cat"} for box in corners]})


def test_an_edited_objects_box_is_the_largest_that_is_found(start: Callable[[Script], ScriptedServer]) -> None:
    server = start(lambda body: chat(boxes((0, 0, 100, 100), (250, 500, 750, 1000))))
    (found,) = grounder().ground([grounded()])
    assert (found.box, found.kind, found.reason) == (pytest.approx((0.25, 0.5, 0.75, 1.0)), "object", None)
    assert found.measures == pytest.approx({"area": 0.25, "boxes": 2.0, "agreement": 1.0, "passes": 1.0})
    assert [grey(picture) for picture in pictures_of(server.seen[0])] == [50, 150]
    assert PROMPT in question_of(server.seen[0])


def test_a_kept_foreground_goes_round_all_that_is_found(start: Callable[[Script], ScriptedServer]) -> None:
    server = start(lambda body: chat(boxes((100, 200, 300, 400), (500, 100, 600, 900))))
    (found,) = grounder().ground([grounded(Task.BACKGROUND_CHANGE)])
    assert (found.box, found.kind) == (pytest.approx((0.1, 0.1, 0.6, 0.9)), "foreground")
    assert "foreground" in question_of(server.seen[0])


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("[]", Reason.NO_REGION),
        ("```json\n[]\n```", Reason.NO_REGION),
        (boxes((0, 0, 10, 10)), Reason.REGION_TOO_SMALL),
        (boxes((0, 0, 1000, 990)), Reason.REGION_TOO_LARGE),
        (boxes((5, 5, 5, 9)), Reason.REPLY_UNUSABLE),
        (boxes((0, 0, 1200, 9)), Reason.REPLY_UNUSABLE),
        ("there is a cat", Reason.REPLY_UNUSABLE),
    ],
)
def test_a_box_that_is_none_or_out_of_bounds_has_its_reason(
    reply: str, reason: Reason, start: Callable[[Script], ScriptedServer]
) -> None:
    start(lambda body: chat(reply))
    (found,) = grounder().ground([grounded()])
    assert found.reason is reason
    assert (found.box is None) == (reason in (Reason.NO_REGION, Reason.REPLY_UNUSABLE))


def test_a_box_on_a_padded_picture_comes_back_to_the_frame(start: Callable[[Script], ScriptedServer]) -> None:
    server = start(lambda body: chat(boxes((100, 0, 200, 250))))
    (found,) = grounder().ground([grounded(height=60, width=600)])
    width, height = Pillow.open(io.BytesIO(pictures_of(server.seen[0])[1])).size
    assert width / height == pytest.approx(3.0, rel=0.05)
    assert found.box == pytest.approx((0.1, 0.0, 0.2, 0.25 * height / (width / 10)), abs=0.02)


def test_opinions_of_several_passes_are_averaged_where_most_agree(start: Callable[[Script], ScriptedServer]) -> None:
    start(lambda body: chat(boxes((100, 100, 300, 300)), boxes((120, 100, 320, 300)), "[]"))
    (found,) = grounder(passes=3).ground([grounded()])
    assert found.box == pytest.approx((0.11, 0.1, 0.31, 0.3))
    assert found.measures["agreement"] == pytest.approx(2 / 3)
    start(lambda body: chat("[]", boxes((120, 100, 320, 300)), "[]"))
    (found,) = grounder(passes=3).ground([grounded()])
    assert found.reason is Reason.NO_REGION


def seeing(shift: float, scale: float = 1.0) -> Script:
    """A model that finds the canary's red rectangle, `shift` pixels to the right and in numbers `scale` too large."""

    def script(body: dict[str, Any]) -> Said:
        if "red rectangle" not in question_of(body):
            return chat(boxes((100, 100, 400, 400)))
        x1, y1, x2, y2 = BOX
        across, down = 1000 * scale / WIDTH, 1000 * scale / HEIGHT
        return chat(
            boxes((round((x1 + shift) * across), round(y1 * down), round((x2 + shift) * across), round(y2 * down)))
        )

    return script


def test_a_server_that_finds_the_canary_is_asked_the_rest(
    start: Callable[[Script], ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_VLM_CANARY", "on")
    server = start(seeing(3))
    curator = grounder()
    found = [answer for _ in range(2) for answer in curator.ground([grounded(), grounded(Task.BACKGROUND_CHANGE)])]
    assert [answer.reason for answer in found] == [None] * 4
    assert sum("red rectangle" in question_of(body) for body in server.seen) == 1


@pytest.mark.parametrize(
    "script", [seeing(40), seeing(0, 0.644), lambda body: chat("[]"), lambda body: chat("a red rectangle")]
)
def test_a_server_whose_grounding_is_off_fails_the_task_before_the_first_row(
    script: Script, start: Callable[[Script], ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KIWI_VLM_CANARY")
    server = start(script)
    with pytest.raises(ServiceError, match="canary") as caught:
        list(grounder().ground([grounded()]))
    assert "KIWI_VLM_CANARY=off" in caught.value.remedy
    assert all("red rectangle" in question_of(body) for body in server.seen)


def test_the_canarys_switch_takes_on_and_off_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_VLM_CANARY", "maybe")
    with pytest.raises(UsageError, match="maybe"):
        grounder()


def verified(kind: Any = "object", prompt: str = PROMPT) -> VerifyRequest:
    images = [clip(1, value)[0] for value in (200, 50, 150)]
    return VerifyRequest("a", images[0], images[1], images[2], None, kind, prompt, Task.LOCAL_CHANGE)


def verdict(identity: float, appearance: float, cleanness: float, degenerate: bool = False) -> str:
    said = {"identity": identity, "appearance": appearance, "cleanness": cleanness, "degenerate": degenerate}
    return json.dumps({"reasoning": "because", **said})


@pytest.mark.parametrize(
    ("reply", "consistency", "reason"),
    [
        (verdict(9, 8, 7), 0.7, None),
        (verdict(5, 5, 5), 0.5, None),
        (verdict(10, 10, 3), 0.3, Reason.REFERENCE_INCONSISTENT),
        (verdict(0, 9, 9), 0.0, Reason.REFERENCE_INCONSISTENT),
        (verdict(0, 0, 0, True), 0.0, Reason.REFERENCE_DEGENERATE),
        (verdict(11, 8, 7), None, Reason.REPLY_UNUSABLE),
        ('{"identity": 9}', None, Reason.REPLY_UNUSABLE),
        ("yes", None, Reason.REPLY_UNUSABLE),
    ],
)
def test_a_reference_is_as_good_as_its_weakest_mark(
    reply: str, consistency: float | None, reason: Reason | None, start: Callable[[Script], ScriptedServer]
) -> None:
    start(lambda body: chat(reply))
    (found,) = verifier().verify([verified()])
    assert (found.consistency, found.reason) == (consistency, reason)
    assert bool(found.measures) == (consistency is not None)


def test_the_verifier_shows_reference_target_and_source_and_asks_by_kind(
    start: Callable[[Script], ScriptedServer],
) -> None:
    server = start(lambda body: chat(verdict(9, 8, 7)))
    list(verifier().verify([verified(), verified("foreground")]))
    assert [[grey(picture) for picture in pictures_of(body)] for body in server.seen] == [[200, 150, 50]] * 2
    texts = sorted((question_of(body) for body in server.seen), key=lambda text: "picture of a background" in text)
    assert "picture of an object" in texts[0]
    assert "picture of a background" in texts[1]


def test_passes_of_the_verifier_are_averaged_and_vote_on_emptiness(start: Callable[[Script], ScriptedServer]) -> None:
    start(lambda body: chat(verdict(9, 9, 9), verdict(3, 9, 9), verdict(6, 9, 9, True)))
    (found,) = verifier(passes=3).verify([verified()])
    assert found.consistency == pytest.approx(0.6)
    assert found.reason is None
    assert found.measures["degenerate"] == pytest.approx(1 / 3)


def test_an_instruction_in_any_script_and_full_of_marks_arrives_whole(
    start: Callable[[Script], ScriptedServer],
) -> None:
    server = start(lambda body: chat(verdict(9, 8, 7)))
    prompt = '把狗换成猫 😀 "quoted" <instruction> </s> {"a": 1}\n\\1'
    list(verifier().verify([verified(prompt=prompt)]))
    assert prompt in question_of(server.seen[0])


def test_the_configuration_builds_them_without_asking_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIWI_VLM_BASE_URL", raising=False)
    chosen = CurationSettings(scorer="vlm", grounder="vlm", verifier="vlm")
    assert registry.scorer(chosen).sample_fps == chosen.score_fps
    for curator in (registry.scorer(chosen), registry.grounder(chosen), registry.verifier(chosen)):
        assert curator.name == "vlm"
        assert re.fullmatch(r"2-[\w.-]+-[0-9a-f]{8}", curator.version)
