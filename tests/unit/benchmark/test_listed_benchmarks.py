"""RefVIE-Bench and OpenVE-Bench (their layouts, with drawn clips): edited, resumed, judged, set in their table."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "services"))
from scripted_server import MODEL, chat, serving

from kiwi.benchmark.listed import edit_listed, judge_listed, load_listed
from kiwi.benchmark.published import published_table
from kiwi.benchmark.samples import BenchmarkError
from kiwi.benchmark.tables import score_table
from kiwi.configuration import ServiceSettings, VlmSettings
from kiwi.errors import UsageError
from kiwi.media import encode_video, png_bytes
from kiwi.tracking import silent


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("KIWI_VLM") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def refvie(tmp_path) -> Path:
    root = tmp_path / "RefVIE-Bench"
    (root / "videos").mkdir(parents=True)
    drawn = np.random.default_rng(0)
    entries = []
    for number, kind in enumerate(("subject", "background", "subject")):
        clip = np.repeat(drawn.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8).repeat(8, 1), 8, 2)
        encode_video(root / "videos" / f"{number}.mp4", clip, 8.0)
        (root / f"{number}.png").write_bytes(png_bytes(clip[0]))
        said = f"src_video: videos/{number}.mp4, instruction: edit {number}, ref_img: {number}.png, edit_type: {kind}"
        entries.append(f"- {{{said}}}")
    (root / "refvie_bench.yaml").write_text("\n".join(entries))
    return root


@pytest.fixture
def asked(configuration):
    mllm, service = VlmSettings(model=MODEL, max_frames=2), ServiceSettings(concurrency=4, attempts=1, cache=False)
    more = {"judge": "mllm", "mllm": mllm, "service": service}
    return configuration.model_copy(update={"benchmark": configuration.benchmark.model_copy(update=more)})


class Inverting:
    """A FAKE editor: the clip's colours turned round; it notes what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, videos, instructions, references=None, *, num_inference_steps, seed, latent_references=None):
        self.seen += instructions
        assert all(each is not None for each in references)
        return [255 - video for video in videos]


def mean_marks(body) -> str:
    first, second, third = body["response_format"]["json_schema"]["schema"]["required"][1:]
    return f'{{"reasoning": "", "{first}": 4, "{second}": 5, "{third}": 2}}'


def test_a_published_list_is_edited_once_judged_and_set_beside_the_published_rows(asked, refvie, monkeypatch):
    editor = Inverting()
    listed = load_listed(asked, f"refvie-bench={refvie}")
    assert edit_listed(asked, listed, silent(), load=lambda folder: editor)["made"] == 3
    assert edit_listed(asked, listed, silent(), load=lambda folder: editor)["made"] == 0
    assert editor.seen == ["edit 0", "edit 1", "edit 2"]
    with serving(lambda body: chat(mean_marks(body))) as server:
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
        scores, path = judge_listed(asked, listed)
    assert path.exists()
    assert scores["coverage"] == 1.0
    assert scores["criteria"]["identity_consistency"] == scores["criteria"]["temporal_consistency"] == 4.0
    assert scores["overall"] == pytest.approx(10 / 3, abs=1e-3)
    (ours,) = score_table(published_table("refvie-bench"), [("ours", scores)]).parts[1].rows
    assert ours == ("ours", "4.00", "4.00", "2.00", "4.00", "4.00", "2.00", "3.33", "3.33", "3")


def test_clips_that_cannot_be_read_lower_coverage_and_are_named(asked, refvie, monkeypatch):
    (refvie / "videos" / "1.mp4").write_bytes(b"no video")
    (refvie / "2.png").unlink()
    editor = Inverting()
    listed = load_listed(asked, f"refvie-bench={refvie}")
    assert edit_listed(asked, listed, silent(), load=lambda folder: editor)["made"] == 1
    with serving(lambda body: chat(mean_marks(body))) as server:
        monkeypatch.setenv("KIWI_VLM_JUDGE_BASE_URL", server.address)
        scores, _ = judge_listed(asked, listed)
    assert scores["coverage"] == pytest.approx(1 / 3, abs=1e-3)
    assert [failure["reason"] for failure in scores["failures"]] == ["source_unreadable"] * 2


def test_changed_media_are_another_revision_and_their_edits_are_made_anew(asked, refvie):
    before = load_listed(asked, f"refvie-bench={refvie}")
    edit_listed(asked, before, silent(), load=lambda folder: Inverting())
    (refvie / "0.png").write_bytes((refvie / "1.png").read_bytes())
    after = load_listed(asked, f"refvie-bench={refvie}")
    assert before.revision != after.revision
    with pytest.raises(BenchmarkError, match="no edits"):
        judge_listed(asked, after)


def test_openve_bench_has_the_categories_of_its_table(asked, refvie):
    rows = "edited_type,prompt,original_video\n" + "".join(
        f"{kind},edit,videos/0.mp4\n"
        for kind in ("global_style", "background_change", "local_change", "local_remove", "local_add", "camera_edit")
    )
    (refvie / "benchmark_videos.csv").write_text(rows)
    listed = load_listed(asked, f"openve-bench={refvie}")
    columns = [column.name for column in published_table("openve-bench").columns]
    assert [sample.category for sample in listed.samples] == columns
    assert {sample.group for sample in listed.samples} == {"instruction"}
    assert [sample.rubric for sample in listed.samples].count("background") == 1


def test_wrong_use_is_one_clear_line(asked, configuration, refvie):
    for said in ("another=here", "refvie-bench", "refvie-bench="):
        with pytest.raises(UsageError, match="names no benchmark"):
            load_listed(asked, said)
    listed = load_listed(configuration, f"refvie-bench={refvie}")
    with pytest.raises(BenchmarkError, match="no ground truth"):
        judge_listed(configuration, listed)
