"""A whole run whose gate decides on a list: killed while the list is edited, resumed, and done again.

The tasks are the components' bodies in one process (tests/integration/short_run.py), for the start of a process for
each of them, which tests/e2e/test_run_orchestration.py is about, would take most of the time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiwi.configuration import RunConfiguration, SourceSettings
from kiwi.media import encode_video, png_bytes
from kiwi.presets import build
from kiwi.registry import history
from kiwi.sources.procedural import render_pair
from kiwi.workspace import read_json
from tests.unit.services.scripted_server import MODEL, ScriptedServer, chat, pictures_of, serving

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "tests" / "integration" / "short_run.py"
ENTRIES = 6  # more than a batch of edits
SMALL = (
    "source.clips=6", "source.images=1", "source.frames=5", "curation.shards=1", "benchmark.sampling_steps=1",
    "benchmark.judge=mllm", f"benchmark.mllm.model={MODEL}", "benchmark.mllm.passes=1", "benchmark.mllm.max_frames=2",
    "benchmark.service.attempts=1", "gate.floors={}", "gate.ceilings={}", "curation.min_training_pairs=1",
)  # fmt: skip


def marks(body: dict[str, Any]) -> Any:
    """Marks of a FAKE judge, which likes whatever is no copy of the source."""
    *_, source, edit = pictures_of(body)
    names = body["response_format"]["json_schema"]["schema"]["required"][1:]
    said = ", ".join(f'"{name}": {1 if source == edit else 4}' for name in names)
    return chat(f'{{"reasoning": "", {said}}}')


@pytest.fixture
def judge() -> Iterator[ScriptedServer]:
    with serving(marks) as server:
        yield server


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfiguration:
    """The tiny preset at its smallest, its gate deciding on a list in RefVIE-Bench's form."""
    for name in [name for name in os.environ if name.startswith(("KIWI_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "list"
    folder.mkdir()
    lines = []
    source = SourceSettings(kind="procedural", clips=ENTRIES, images=0, frames=5, seed=9)
    for place in range(ENTRIES):
        kind = "background_reference" if place % 3 == 2 else "subject_reference"
        drawn = render_pair(source, place, kind)
        encode_video(folder / f"{place}.mp4", drawn.source, drawn.fps)
        assert drawn.reference is not None
        (folder / f"{place}.png").write_bytes(png_bytes(drawn.reference))
        type_ = kind.partition("_")[0]
        lines.append(
            f"- {{src_video: {place}.mp4, instruction: '{drawn.prompt}', ref_img: {place}.png, edit_type: {type_}}}\n"
        )
    (folder / "mine.yaml").write_text("".join(lines))
    whole = build(
        "tiny",
        workspace=tmp_path / "work",
        tracking_uri=f"sqlite:///{tmp_path}/tracking/mlflow.db",
        overrides=[*SMALL, f"benchmark.listed=mine={folder}/mine.yaml"],
    )
    return whole.model_copy(update={"stages": (whole.stages[0].model_copy(update={"steps": 2}),)})


def run(configuration: RunConfiguration, name: str, judge: ScriptedServer, stop: str = "") -> int:
    said = configuration.workdir.parent / "configuration.json"
    said.write_text(configuration.canonical())
    more = {
        "KIWI_RUN_ID": name,
        "PYTHONPATH": str(REPOSITORY),
        "KIWI_VLM_JUDGE_BASE_URL": judge.address,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(PROGRAM), str(said), *([stop] if stop else [])]
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, timeout=300)
    assert stop or done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def edits(configuration: RunConfiguration) -> dict[str, int]:
    """The kept edits of every model, and when each was made."""
    kept = (configuration.workdir / "benchmark" / "mine" / "edits").rglob("*.safetensors")
    return {f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns for path in kept}


def test_a_run_decides_on_a_list_goes_on_after_a_kill_within_it_and_reuses_it(
    configuration: RunConfiguration, judge: ScriptedServer
) -> None:
    root = configuration.workdir
    assert run(configuration, "killed", judge, "run_benchmark:SIGKILL") == -signal.SIGKILL
    before = edits(configuration)
    assert 0 < len(before) < ENTRIES
    assert judge.seen == []

    run(configuration, "resumed", judge)
    made = edits(configuration)
    assert len(made) == ENTRIES
    assert before.items() <= made.items(), "what was made before the kill was not made again"
    scores, decision = read_json(root / "benchmark" / "scores.json"), read_json(root / "decision.json")
    assert (scores["benchmark"], scores["samples"], scores["coverage"]) == ("mine", ENTRIES, 1.0)
    assert (scores["overall"], scores["baselines"]["copy_source"]["overall"]) == (4.0, 1.0)
    assert (decision["decision"], decision["compared_with"]) == ("promote", "copy_source")
    assert "champion" in read_json(root / "model.json")["aliases"]
    page = (root / "report" / "index.html").read_text()
    assert f"{ENTRIES} samples of mine" in page
    assert "is the champion" in page
    assert page.count("4.00 of 5") >= 2, "the gallery shows marks"
    assert read_json(root / "summary.json")["benchmark"]["overall"] == 4.0

    asked = len(judge.seen)
    run(configuration, "again", judge)
    assert edits(configuration) == made, "no edit is made twice"
    assert len(judge.seen) == asked, "and none is judged twice"
    decision = read_json(root / "decision.json")
    assert (decision["decision"], decision["compared_with"]) == ("hold", "champion")
    told = history(configuration.tracking_uri, configuration.model_name)
    assert [entry.action for entry in told] == ["register", "pass", "promote", "register", "hold"]
