"""A whole build whose scores, boxes and verdicts come from a vision-language model's server.

The server is scripted (tests/unit/services/scripted_server.py says why). Segments and references are classical.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kiwi.configuration import CurationSettings, RunConfiguration, ServiceSettings, SourceSettings, VlmSettings
from kiwi.curation.build import build_dataset
from kiwi.curation.finished import dataset_folder
from kiwi.dataset.reader import read_rows
from kiwi.tracking import read_records
from tests.unit.services.scripted_server import MODEL, Said, chat, pictures_of, question_of, serving


def script(body: dict[str, Any]) -> Said:
    """Likes every second instruction's edit, sees the object in the middle, and believes every reference."""
    said = json.dumps(body["response_format"])
    if "bbox_2d" in said:
        return chat(json.dumps({"objects": [{"bbox_2d": [50, 50, 950, 950], "label": "object"}]}))
    if "identity" in said:
        marks = {"identity": 9, "appearance": 8, "cleanness": 9, "degenerate": False}
        return chat(json.dumps({"reasoning": "alike", **marks}))
    good = len(pictures_of(body)) == 1 or hashlib.sha256(question_of(body).encode()).digest()[0] % 2
    return chat(json.dumps({"reasoning": "so", "score": [22, 21] if good else [8, 20]}))


def configured(workspace: Path, **curation: Any) -> RunConfiguration:
    model = VlmSettings(model=MODEL, image_pixels=4096)
    settings = {"shards": 2, "chunk_rows": 4, "min_training_pairs": 1, "min_quadruplets": 0}
    curators = {"scorer": "vlm", "grounder": "vlm", "verifier": "vlm"}
    asked = {"vlm_score": model, "vlm_ground": model, "vlm_verify": model, "service": ServiceSettings(concurrency=8)}
    return RunConfiguration(
        preset="tiny",
        workspace=str(workspace),
        tracking_uri="",
        stages=(),
        source=SourceSettings(clips=8, images=0, frames=5),
        curation=CurationSettings(**settings, **curators, **asked, **curation),
    )


def test_a_build_by_a_server_keeps_what_it_said_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("KIWI_VLM")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KIWI_VLM_CANARY", "off")
    with serving(script) as server:
        monkeypatch.setenv("KIWI_VLM_BASE_URL", server.address)
        monkeypatch.setenv("KIWI_RUN_ID", "first")
        result = build_dataset(configured(tmp_path))
        asked = len(server.seen)
        rows = read_rows(dataset_folder(configured(tmp_path)))
        spent = [record.metrics for record in read_records(tmp_path, "first") if record.name == "score"]
        lenient = build_dataset(configured(tmp_path, pixel_budget=100_000))
        assert len(server.seen) == asked  # other settings of ours, the same pictures: every reply is kept
    assert set(rows["score_name"]) == {"vlm_score"}
    assert result["quadruplets"] == lenient["quadruplets"]
    curators = json.loads(rows["curator"][0])
    assert curators["score"].startswith("vlm-2-scripted")
    assert curators["segment"].startswith("classical")
    assert (
        sum(each["service_requests"] for each in spent) == 2 * 2 * 8
    )  # two questions for each of two frames of 8 clips
    below = rows.filter(reason="score_below_threshold")
    assert below.height > 0
    assert (below["score_overall"] < 6).all()
    assert below["detail"][0].startswith("vlm_score")
