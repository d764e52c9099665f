"""Claims about the report: complete, self-contained, escaped, and never stopped by what is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kiwi.configuration import SourceSettings
from kiwi.reports import write_report
from kiwi.tracking import silent
from kiwi.workspace import read_json, write_json

Make = Callable[..., Any]


class Links(HTMLParser):
    """Every address that a page names, and its visible words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self._hidden = False
        self.feed(text)
        self.words = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag in ("style", "script")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "poster")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.words += "" if self._hidden else data


def read(path: Path) -> Links:
    return Links(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, made_up: Make) -> tuple[Any, Path]:
    run = made_up(tmp_path_factory.mktemp("complete")).everything()
    return run, write_report(run.configuration, silent())


def test_the_report_of_a_complete_run_shows_every_section(complete: tuple[Any, Path]) -> None:
    page = read(complete[1])
    for said in (
        "Promoted", "version 2 is the champion", "leads champion version 1", "refvie/v1", "Identity consistency",
        "Background reference", "3,000 image pair", "Stage 3", "publish dataset", "5b0f0c7d1e2a4f6b8c9d0e1f2a3b4c5d",
        "kiwi run --preset tiny", "random initial weights", "deterministic: six criteria",
    ):  # fmt: skip
        assert said.lower() in page.words.lower(), said
    assert "Not reached" not in page.words


def test_everything_the_report_shows_lies_beside_it_and_nothing_comes_from_a_network(
    complete: tuple[Any, Path], tmp_path: Path
) -> None:
    moved = shutil.copytree(complete[1].parent, tmp_path / "elsewhere")
    for name in ("index.html", "dataset.html"):
        text = (moved / name).read_text()
        page = Links(text)
        assert page.addresses
        for address in page.addresses:
            assert address.startswith("#") or (moved / address).is_file(), address
        assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)[a-z]", re.sub(r"postgresql://\S*", "", text))
    assert len(list((moved / "media").glob("*.mp4"))) > 50


def test_the_clips_are_ones_that_browsers_play(complete: tuple[Any, Path]) -> None:
    import av

    for path in sorted((complete[1].parent / "media").glob("*.mp4"))[::7]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p"), path.name


def test_the_gallery_shows_best_median_and_worst_of_every_kind(complete: tuple[Any, Path]) -> None:
    text = complete[1].read_text()
    gallery = text[text.index('id="gallery"') : text.index("Given something else")]
    assert gallery.count("inside the edit, copy") == 6
    for rank in ("best", "median", "worst"):
        assert gallery.count(f"r-{rank}") == 6


def test_the_funnel_of_the_page_reconciles_and_says_so(complete: tuple[Any, Path]) -> None:
    assert "rows in = kept + rejected + failed" in read(complete[1]).words


def test_a_funnel_that_does_not_add_up_is_called_out(made_up_run: Make) -> None:
    run = made_up_run()
    run.dataset()
    path = run.root / "data" / "dataset" / "manifest.json"
    manifest = read_json(path)
    manifest["funnel"][1]["kept"] += 1
    write_json(path, manifest)
    assert "do not add up" in read(write_report(run.configuration, silent())).words


def test_a_workspace_in_which_nothing_ran_gives_a_report_that_says_so(made_up_run: Make) -> None:
    page = read(write_report(made_up_run().configuration, silent()))
    assert "Nothing ran yet" in page.words
    assert page.words.count("Not reached") >= 6


@pytest.mark.parametrize("missing", ["tasks", "training", "dataset", "benchmark", "decision"])
def test_any_part_may_be_missing(made_up_run: Make, missing: str) -> None:
    run = made_up_run()
    for part in ("tasks", "training", "dataset", "benchmark", "decision"):
        if part != missing:
            getattr(run, part)()
    page = read(write_report(run.configuration, silent()))
    assert ("Not reached" in page.words) == (missing != "decision")


def test_a_failed_run_says_what_failed_and_the_remedy(made_up_run: Make) -> None:
    run = made_up_run()
    run.task("ingest", 0, 5, shard=0)
    run.task("publish_dataset", 6, 2, error="TooFewSamples: 3 training pairs are left, 4 are needed")
    page = read(write_report(run.configuration, silent()))
    assert "The run stopped at publish dataset" in page.words
    assert "3 training pairs are left, 4 are needed" in page.words
    assert "give the same command again" in page.words


def test_a_run_that_failed_without_a_word_is_not_called_under_way(made_up_run: Make) -> None:
    run = made_up_run()
    run.task("ingest", 0, 5)
    run.task("finish", 6, 1)
    path = next((run.root / "records").glob("*/finish.jsonl"))
    state = json.dumps({"event": "params", "time": 1.0, "params": {"state": "FAILED"}})
    path.write_text(path.read_text().replace("\n", f"\n{state}\n", 1))
    assert "Failed" in read(write_report(run.configuration, silent())).words


def test_a_held_candidate_is_shown_with_the_reason(made_up_run: Make) -> None:
    page = read(write_report(made_up_run().everything("hold").configuration, silent()))
    assert "stays a challenger" in page.words
    assert "accuracy, recolour of 0.62 is below the floor of 0.8" in page.words
    assert "✕" in page.words


def test_what_users_wrote_is_escaped(made_up_run: Make) -> None:
    attack = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    source = SourceSettings(kind="pairs", pairs=attack)
    run = made_up_run(model_name=attack, source=source).everything()
    edits = read_json(run.root / "benchmark" / "edits.json")
    for sample in edits["samples"]:
        sample.update(prompt=attack, kind=attack)
    write_json(run.root / "benchmark" / "edits.json", edits)
    run.task("judge", 0, 1, error=f"KiwiError: {attack}")
    page = read(write_report(run.configuration, silent()))
    assert page.tags.count("script") == 1
    assert "x" not in page.addresses
    assert attack in page.words


def test_media_outside_the_benchmarks_folder_are_not_copied(made_up_run: Make) -> None:
    run = made_up_run()
    run.benchmark()
    (run.root / "secret.png").write_bytes(b"not to be shown")
    edits = read_json(run.root / "benchmark" / "edits.json")
    for sample in edits["samples"]:
        sample["files"]["reference"] = "../secret.png"
    write_json(run.root / "benchmark" / "edits.json", edits)
    path = write_report(run.configuration, silent())
    assert all(file.read_bytes() != b"not to be shown" for file in path.parent.glob("media/*"))


def test_the_password_of_a_tracking_address_is_not_shown(complete: tuple[Any, Path]) -> None:
    assert "secret-word" not in complete[1].read_text()


def test_writing_twice_changes_nothing_but_the_page_and_leaves_no_stale_media(made_up_run: Make) -> None:
    run = made_up_run().everything()
    path = write_report(run.configuration, silent())
    before = {file.name: file.read_bytes() for file in (path.parent / "media").iterdir()}
    (path.parent / "media" / "of-an-earlier-run.mp4").write_bytes(b"stale")
    write_report(run.configuration, silent())
    assert {file.name: file.read_bytes() for file in (path.parent / "media").iterdir()} == before


@pytest.mark.parametrize("name", ["benchmark/scores.json", "benchmark/edits.json", "decision.json", "dataset.json"])
@pytest.mark.parametrize("content", ["{ cut sh", "[1, 2]"])
def test_a_broken_file_is_named_and_the_rest_is_shown(made_up_run: Make, name: str, content: str) -> None:
    run = made_up_run()
    run.training()
    run.benchmark()
    run.decision()
    (run.root / name).write_text(content)
    page = read(write_report(run.configuration, silent()))
    assert f"{Path(name).name} cannot be read" in page.words
    assert "steps" in page.words


def test_a_video_that_cannot_be_decoded_does_not_stop_the_report(made_up_run: Make) -> None:
    run = made_up_run()
    run.benchmark()
    for path in (run.root / "benchmark").rglob("result.mp4"):
        path.write_bytes(b"cut")
    assert write_report(run.configuration, silent()).exists()


def test_a_dataset_that_cannot_be_read_is_named(made_up_run: Make) -> None:
    run = made_up_run()
    run.dataset()
    next((run.root / "data" / "dataset" / "rows").glob("*.parquet")).write_bytes(b"cut")
    assert "the dataset cannot be shown" in read(write_report(run.configuration, silent())).words


def test_the_dataset_page_shows_what_was_kept_and_why_others_were_not(complete: tuple[Any, Path]) -> None:
    page = read(complete[1].parent / "dataset.html")
    for said in ("Quadruplets", "Turned away", "mask degenerate", "Verify consistency", "the file ends after 12 bytes"):
        assert said.lower() in page.words.lower(), said
