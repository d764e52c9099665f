"""`kiwi data sources`: the table of adapters, and what one of them finds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from kiwi.cli import app
from kiwi.errors import UsageError
from kiwi.sources.registry import adapter_names
from kiwi.sources.survey import survey

Written = Callable[[dict[str, Any]], str]


def ditto(number: int, folder: str, instruction: object = "Replace the cup.") -> dict[str, object]:
    return {"source_path": "source/a.mp4", "edited_path": f"{folder}/{number}.mp4", "instruction": instruction}


@pytest.fixture
def collection(written_here: Written) -> str:
    entries = [ditto(number, "local") for number in range(6)] + [ditto(6, "global_style1"), ditto(7, "local", 3)]
    there = {f"videos/local/{number}.mp4": b"clip" for number in range(4)}
    return written_here({"training_metadata/a.json": entries, "videos/source/a.mp4": b"clip", **there})


def test_the_table_names_every_adapter_with_its_licence_and_layout() -> None:
    done = CliRunner().invoke(app, ["data", "sources", "--json"])
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == ["procedural", *adapter_names()]
    assert all(row["title"] and row["license"] and row["layout"] for row in rows)
    assert "CC-BY-NC-SA-4.0" in CliRunner().invoke(app, ["data", "sources"]).stdout


def test_a_collection_is_counted_and_a_sample_of_its_media_looked_for(collection: str) -> None:
    done = CliRunner().invoke(app, ["data", "sources", "ditto-1m", collection, "--check", "100", "--json"])
    found = json.loads(done.stdout)
    assert found["pairs"] == 8
    assert found["tasks"] == {"local_change": 6, "global_style": 1}
    assert found["eligible_for_references"] == 6
    assert found["license"] == {"CC-BY-NC-SA-4.0": 8}
    assert found["problems"] == {"listing_malformed": 1}
    assert found["checked"] == {"pairs": 7, "missing": {"target_missing": 3}}
    assert [told["position"] for told in found["first_problems"]] == ["7", "4", "5", "6"]


def test_a_sample_is_of_the_size_asked_for_and_the_same_each_time(collection: str) -> None:
    first = survey("ditto-1m", collection, 3)
    assert first["checked"]["pairs"] == 3
    assert survey("ditto-1m", collection, 3) == first
    assert survey("ditto-1m", collection, 0)["checked"] == {"pairs": 0, "missing": {}}


def test_what_a_listing_says_does_not_steer_the_terminal(written_here: Written) -> None:
    entry = {"id": "\x1b[2J\x1b]0;owned\x07", "input": "a.png", "output": "b.png", "instruction": "x"}
    root = written_here({"gpt-edit/hqedit/edit/metadata/a.json": [entry]})
    done = CliRunner().invoke(app, ["data", "sources", "gpt-image-edit-1.5m", root])
    assert "source_missing" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout


def test_wrong_use_is_told() -> None:
    for arguments in (["ditto-1m"], ["no-such", "x"], ["ditto-1m", "/no/such/folder"], ["refvie-bench", "/tmp"]):
        error = CliRunner().invoke(app, ["data", "sources", *arguments]).exception
        assert isinstance(error, UsageError)
        assert error.remedy


def test_the_table_is_printed_without_heavy_imports() -> None:
    code = "import sys; from kiwi.sources.survey import adapter_table; adapter_table(); print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"numpy", "pyarrow", "polars", "av", "cv2", "torch", "yaml", "s3fs"}
