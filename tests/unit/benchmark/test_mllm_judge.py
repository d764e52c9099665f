"""The judge `mllm` against a FAKE server (real HTTP, replies written here): what it shows, what it believes, the cap.

No multimodal model answers here: lies, refusals and outages cannot be had from a real one on demand.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "services"))
from scripted_server import MODEL, chat, error, pictures_of, question_of, serving

from kiwi.benchmark.judge import judge_again, judge_edits
from kiwi.benchmark.judges import judge_of
from kiwi.benchmark.mllm_judge import CATEGORIES, MllmJudge, judged
from kiwi.benchmark.rubric import CRITERIA, FailedMeasurement
from kiwi.benchmark.run import run_benchmark
from kiwi.benchmark.samples import BenchmarkError
from kiwi.configuration import BenchmarkSettings, ServiceSettings, VlmSettings
from kiwi.errors import UsageError
from kiwi.services import Reply, ServiceError
from kiwi.tracking import silent

SUBJECT, BACKGROUND = CRITERIA["subject"], CRITERIA["background"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("KIWI_VLM") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def settings(**asked) -> BenchmarkSettings:
    service = ServiceSettings(concurrency=8, attempts=2, cache=asked.pop("cache", False))
    prices = asked.pop("prices", None)
    mllm = VlmSettings(**{"model": MODEL, "max_frames": 3, **asked})
    return BenchmarkSettings(judge="mllm", mllm=mllm, service=service, prices=prices)


def asked_of(body) -> tuple[str, ...]:
    """The criteria that a request's schema asks for."""
    return tuple(body["response_format"]["json_schema"]["schema"]["required"][1:])


def marks(body, *values) -> str:
    return json.dumps({"reasoning": "seen"} | dict(zip(asked_of(body), values, strict=True)))


@pytest.fixture
def judging(monkeypatch, tmp_path):
    """Judges views with a scripted server: judging(views, script, **settings) -> (judgements, judge, server)."""

    def run(views, script, **asked):
        judge = MllmJudge.from_settings(settings(**asked), str(tmp_path / "replies"))
        with serving(script) as server:
            monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
            return list(judge.judge_all(views)), judge, server

    return run


def views_of(held_out, kind, number=1):
    return [sample.view(sample.truth) for sample in held_out.of_kind(kind)[:number]]


def test_the_model_sees_rubric_reference_and_frames_of_both_clips_and_never_the_truth(held_out, judging):
    (sample,) = held_out.of_kind("subject_reference")[:1]
    view = sample.view(sample.source)  # a copy: where a picture differs from the source, it would be the truth
    (found,), _, server = judging([view], lambda body: chat(marks(body, 4, 3, 2)))
    (body,) = server.seen
    assert found.scores == dict(zip(SUBJECT, (4.0, 3.0, 2.0), strict=True))
    words, pictures = question_of(body), pictures_of(body)
    assert sample.prompt in words
    assert asked_of(body) == SUBJECT
    assert all(name in words for name in SUBJECT)
    assert len(pictures) == 1 + 2 * 3
    assert pictures[1::2] == pictures[2::2]
    assert len(set(pictures[1:])) == 3
    seen = replace(view, reference=None, category="local_change")
    _, _, server = judging([seen], lambda body: chat(marks(body, 1, 1, 1)))
    assert len(pictures_of(server.seen[0])) == 2 * 3


def test_a_frame_that_an_edit_left_as_it_was_is_encoded_once(held_out, judging, monkeypatch):
    encoded = []
    monkeypatch.setattr("kiwi.services.questions.jpeg_bytes", lambda pixels: encoded.append(0) or b"jpeg")
    sample = held_out.of_kind("swap")[0]
    for edit, pictures in ((sample.source, 3), (255 - sample.source, 6)):
        encoded.clear()
        _, _, server = judging([sample.view(edit)], lambda body: chat(marks(body, 1, 1, 1)))
        assert (len(encoded), len(pictures_of(server.seen[0]))) == (pictures, 6)


def test_each_category_is_asked_with_its_own_rubric(held_out, judging):
    view = views_of(held_out, "recolour")[0]
    views = [replace(view, category=category, reference=view.source[0]) for category in CATEGORIES]
    _, _, server = judging(views, lambda body: chat(marks(body, 1, 1, 1)))
    assert len({question_of(body) for body in server.seen}) == len(CATEGORIES) == 7
    assert not [body for body in server.seen if "<" in question_of(body)]
    assert sorted(len(pictures_of(body)) for body in server.seen) == [6] * 5 + [7] * 2


LIES = [
    "no JSON at all",
    "I cannot help with that.",
    "",
    '{"reasoning": "", "%s": 0, "%s": 1, "%s": 1}',
    '{"reasoning": "", "%s": 7, "%s": 1, "%s": 1}',
    '{"reasoning": "", "%s": 4.5, "%s": 1, "%s": 1}',
    '{"reasoning": "", "%s": "five", "%s": 1, "%s": 1}',
    '{"reasoning": "", "%s": "5", "%s": 1, "%s": 1}',
    '{"reasoning": "", "%s": true, "%s": 1, "%s": 1}',
    '{"reasoning": "", "%s": null, "%s": 1, "%s": 1}',
    '{"reasoning": "", "%s": NaN, "%s": 1, "%s": 1}',
    '{"reasoning": "", "%s": 3, "%s": 1}',
    '[{"reasoning": "", "%s": 3, "%s": 1, "%s": 1}]',
    '{"reasoning": "", "%s": 3, "%s": 1, "%s": 1',
]


@pytest.mark.parametrize("lie", LIES)
def test_a_reply_that_cannot_be_used_is_a_typed_failure_and_no_score(held_out, judging, lie):
    text = lie % SUBJECT[: lie.count("%s")]
    (found,), judge, server = judging(views_of(held_out, "swap"), lambda body: chat(text))
    assert found.scores is None
    assert found.repeats == ()
    assert found.failure.reason == FailedMeasurement.REPLY_INVALID
    assert len(server.seen) == 3
    assert judge.spent()["unusable"] == 1


def test_a_lie_is_asked_again_from_another_seed_and_then_believed(held_out, judging):
    replies = iter(["no", None])

    def script(body):
        return chat(next(replies) or marks(body, 5, 4, 3))

    (found,), _, server = judging(views_of(held_out, "swap"), script)
    assert found.scores[SUBJECT[0]] == 5.0
    assert len({body["seed"] for body in server.seen}) == 2


def test_one_unusable_repeat_is_replaced_and_never_averaged_over(held_out, judging):
    def script(body):
        return chat(*[marks(body, 4, 4, 4)] * (body.get("n", 1) - 1), "nothing") if body.get("n") else chat("still no")

    (found,), _, _ = judging(views_of(held_out, "swap"), script, passes=3)
    assert found.failure.reason == FailedMeasurement.REPLY_INVALID


def test_a_refused_request_is_its_own_failure_and_the_others_are_judged(held_out, judging):
    first, second = views_of(held_out, "swap", 2)

    def script(body):
        return error(400, "too long") if first.prompt in question_of(body) else chat(marks(body, 2, 2, 2))

    found, _, _ = judging([first, replace(second, prompt="another")], script)
    assert found[0].failure.reason == FailedMeasurement.REQUEST_REFUSED
    assert found[1].scores[SUBJECT[0]] == 2.0


def test_a_picture_that_cannot_be_shown_is_its_own_failure(held_out, judging):
    view = views_of(held_out, "swap")[0]
    broken = replace(view, edit=view.edit[..., :1])
    found, _, _ = judging([broken, view], lambda body: chat(marks(body, 2, 2, 2)))
    assert found[0].failure.reason in (FailedMeasurement.PICTURE_INVALID, FailedMeasurement.JUDGE_ERROR)
    assert found[1].scores is not None


def test_a_server_that_is_away_fails_the_task_and_no_sample(held_out, judging):
    with pytest.raises(ServiceError, match="locked"):
        judging(views_of(held_out, "swap"), lambda body: error(401, "locked"))


whole = st.integers(1, 5)


@given(st.lists(st.tuples(whole, whole, whole), min_size=1, max_size=5), st.sampled_from(["subject", "background"]))
def test_the_cap_holds_for_every_reply_and_for_the_mean_of_them(replies, rubric):
    names = CRITERIA[rubric]
    values = tuple(type("Said", (), dict(zip(names, each, strict=True))) for each in replies)
    found = judged(Reply(texts=("",) * len(values), values=values), rubric)
    for row in (*found.repeats, found.scores):
        assert row[names[1]] <= row[names[0]]
        assert row[names[2]] <= row[names[0]]
        assert all(1 <= value <= 5 for value in row.values())
    assert found.scores[names[0]] == pytest.approx(np.mean([each[0] for each in replies]))


def test_the_cap_holds_over_http_under_random_replies(held_out, judging):
    drawn = random.Random(0)
    views = [sample.view(sample.truth) for sample in held_out.samples]

    def script(body):
        return chat(*(marks(body, *(drawn.randint(1, 5) for _ in range(3))) for _ in range(body["n"])))

    found, _, _ = judging(views, script, passes=2)
    for view, each in zip(views, found, strict=True):
        first, *others = CRITERIA[view.rubric]
        assert all(row[name] <= row[first] for row in each.repeats for name in others)
    assert any(len({row[SUBJECT[0]] for row in each.repeats if SUBJECT[0] in row}) == 2 for each in found)


def test_kept_replies_are_not_asked_or_paid_for_again(held_out, judging):
    views = views_of(held_out, "swap", 3)
    asked = {"cache": True, "prices": (1.0, 10.0), "passes": 2}

    def script(body):
        return chat(marks(body, 3, 3, 3), marks(body, 5, 3, 3))

    first, judge, server = judging(views, script, **asked)
    assert len(server.seen) == judge.spent()["requests"] == 3
    assert judge.spent()["cost"] == pytest.approx(3 * (100 * 1.0 + 20 * 10.0) / 1e6)
    again, judge, server = judging(views, script, **asked)
    assert (again, server.seen) == (first, [])
    assert (judge.spent()["cached"], judge.spent()["cost"]) == (3, 0.0)


def test_the_name_changes_with_the_model_the_rubrics_and_the_settings_and_with_nothing_else(tmp_path):
    from kiwi.benchmark.mllm_judge import RUBRICS

    own = tmp_path / "rubrics"
    own.mkdir()
    for path in RUBRICS.iterdir():
        (own / path.name).write_text(path.read_text())

    def named(**asked):
        return MllmJudge.from_settings(settings(**asked), "unused").name

    same = {named(), named(cache=True), named(prices=(1.0, 1.0)), named(prompt=str(own))}
    assert len(same) == 1
    others = {named(model="another"), named(passes=2), named(max_frames=4), named(temperature=0.5)}
    (own / "local_add.txt").write_text("<instruction> <first> <second> <third>")
    others.add(named(prompt=str(own)))
    assert len(others | same) == 6
    (own / "local_add.txt").unlink()
    with pytest.raises(UsageError, match=r"local_add\.txt"):
        named(prompt=str(own))


def load(fake_editor, held_out):
    editor = fake_editor(held_out, lambda sample: sample.truth)
    return lambda folder: editor


def test_a_run_is_judged_by_a_model_with_its_spread_cost_and_coverage(
    configuration, fake_editor, held_out, monkeypatch
):
    from kiwi.benchmark.samples import load_held_out

    chosen = configuration.model_copy(
        update={"benchmark": configuration.benchmark.model_copy(update=dict(settings(passes=2)) | few())}
    )
    samples = load_held_out(chosen)
    first = samples.samples[0].prompt
    answers = iter(range(10**6))

    def script(body):
        if first in question_of(body):
            return chat("no words for it")
        best = 3 + next(answers) % 2
        return chat(marks(body, best, 5, 5), marks(body, best + 1, 5, 5))

    run_benchmark(chosen, silent(), load=load(fake_editor, samples))
    with serving(script) as server:
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
        scores = judge_edits(chosen, silent())
    assert scores["judge"] == judge_of(chosen).name
    assert scores["coverage"] < 1.0
    assert {each["reason"] for each in scores["failures"]} == {"reply_invalid"}
    assert scores["judge_spread"]["repeats"] == 2
    assert 0 < scores["judge_spread"]["overall"] < 0.5
    assert scores["intervals"]["overall"][0] <= scores["overall"] <= scores["intervals"]["overall"][1]
    assert scores["judging"]["prompt_tokens"] > 0
    assert scores["baselines"]["copy_source"]["comparison"]["samples"] > 0
    assert all(len(row["repeats"]) == 2 for row in scores["per_sample"] if row["criteria"])


def few():
    return {"samples_per_kind": 2, "stage_samples_per_kind": 1}


def test_another_judge_leaves_what_the_run_decided_on_as_it_is(configuration, fake_editor, monkeypatch):
    from kiwi.benchmark.samples import load_held_out

    samples = load_held_out(configuration)
    run_benchmark(configuration, silent(), load=load(fake_editor, samples))
    measured = judge_edits(configuration, silent())
    kept = (configuration.workdir / "benchmark" / "scores.json").read_bytes()
    asked = {"judge": "mllm", "mllm": settings().mllm, "service": settings().service}
    other = configuration.model_copy(update={"benchmark": configuration.benchmark.model_copy(update=asked)})
    with pytest.raises(BenchmarkError, match="only judge again"):
        judge_edits(other, silent())
    with serving(lambda body: chat(marks(body, 2, 5, 5))) as server:
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
        scores, path = judge_again(other, silent())
    assert (measured["overall"], scores["overall"]) == (5.0, 2.0)
    assert json.loads(path.read_text())["judge"] == scores["judge"]
    assert (configuration.workdir / "benchmark" / "scores.json").read_bytes() == kept
