"""The dataset's own page: one file, nothing from a network, bounded, escaped, and true to the rows."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kiwi.dataset.assemble import write_dataset
from kiwi.dataset.manifest import ManifestError
from kiwi.dataset.split import all_train
from kiwi.errors import UsageError
from kiwi.reports import dataset_samples, embedding
from kiwi.reports.dataset_page import write_dataset_card

Make = Callable[..., Any]


class Page(HTMLParser):
    """Every address and tag of a page, and its visible words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self._hidden = False
        self.feed(self.text)
        self.words = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag in ("style", "script")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "poster")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.words += "" if self._hidden else data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, made_up: Make) -> Path:
    run = made_up(tmp_path_factory.mktemp("made-up"))
    run.dataset()
    return Path(run.root / "data" / "dataset")


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_dataset_card(folder, tmp_path_factory.mktemp("page") / "card.html", "refvie/v7"))


def again(folder: Path, to: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Path:
    """The dataset written anew with changed rows."""
    rows = change(pl.read_parquet(folder / "rows" / "*.parquet"))
    write_dataset(to, rows, folder, parameters={}, split=all_train)
    return to


def test_the_page_needs_no_other_file_and_no_network(page: Page) -> None:
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses), page.addresses
    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.text))
    assert "default-src 'none'" in page.text


def test_the_page_plays_clips_that_browsers_play(page: Page) -> None:
    import av

    clips = [address for address in page.addresses if address.startswith("data:video/mp4;base64,")]
    assert len(clips) > 10
    data = b64decode(clips[0].partition(",")[2])
    import io

    with av.open(io.BytesIO(data)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")


def test_the_page_shows_every_section_of_a_card(page: Page) -> None:
    for said in (
        "refvie/v7", "The way to a quadruplet", "3,000 image pair", "Task", "Frames a clip", "Width × height",
        "Score overall", "Turned away", "Licences, added up",
        "Curators and models", "Known limits", "rows in = kept + rejected + failed",
    ):  # fmt: skip
        assert said.lower() in page.words.lower(), said
    assert "Run report" not in page.words


def test_a_card_shows_source_reference_and_target_in_that_order(page: Page) -> None:
    quadruplets = page.text[page.text.index('id="quadruplets"') : page.text.index('id="rejected"')]
    first = quadruplets[quadruplets.index("<article") : quadruplets.index("</article>")]
    assert re.findall(r"<figcaption>(\w+)</figcaption>", first) == ["Source", "Reference", "Target"]


def test_every_reason_is_shown_with_its_rows_and_a_few_of_them(folder: Path, page: Page) -> None:
    from kiwi.dataset.manifest import read_manifest

    manifest = read_manifest(folder)
    rejected = page.text[page.text.index('id="rejected"') : page.text.index('id="licences"')]
    for reason, amount in {**manifest["rejected"], **manifest["failed"]}.items():
        words = reason.replace("_", " ")
        cards = re.findall(rf'<b class="rank">{words}</b><span class="gain num">{amount:,} row', rejected)
        assert 1 <= len(cards) <= dataset_samples.EACH_REASON, reason


def test_media_stay_within_their_budget_and_what_was_left_out_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding.EmbeddedMedia.__init__, "__defaults__", (40_000, 0, 0))
    small = Page(write_dataset_card(folder, tmp_path / "small.html"))
    sizes = [len(address.partition(",")[2]) * 3 / 4 for address in small.addresses]
    assert 0 < sum(sizes) <= 40_000
    assert "left out to keep this file small" in small.words


def test_what_people_wrote_is_shown_and_not_obeyed(folder: Path, tmp_path: Path) -> None:
    bad = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    columns = ("prompt", "edit_type", "license", "source_dataset", "detail")
    path = again(folder, tmp_path / "d", lambda rows: rows.with_columns(pl.lit(bad).alias(name) for name in columns))
    shown = Page(write_dataset_card(path, tmp_path / "bad.html"))
    assert shown.tags.count("script") == 1
    assert "onerror" not in re.sub(r"&lt;img.*?&gt;", "", shown.text)
    assert shown.words.count("<script>alert(1)</script>") > 5


def test_a_dataset_without_quadruplets_says_so(folder: Path, tmp_path: Path) -> None:
    path = again(folder, tmp_path / "d", lambda rows: rows.filter(pl.col("trains_as") != "quadruplet"))
    shown = Page(write_dataset_card(path, tmp_path / "none.html"))
    assert "No pair was kept to the end" in shown.words
    assert "Turned away" in shown.words


def test_clips_that_are_gone_are_told_without_a_path_of_the_machine(folder: Path, tmp_path: Path) -> None:
    path = again(folder, tmp_path / "d", lambda rows: rows)
    for shard in (path / "media").glob("*.tar"):
        shard.unlink()
    shown = Page(write_dataset_card(path, tmp_path / "gone.html"))
    assert "cannot be shown: media/media-00000.tar" in shown.words
    assert str(tmp_path) not in shown.text


def test_what_is_no_dataset_and_what_is_no_file_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        write_dataset_card(tmp_path, tmp_path / "card.html")
    with pytest.raises(UsageError, match="is a folder"):
        write_dataset_card(folder, tmp_path)


def test_only_the_references_that_are_shown_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dataset_samples.with_part([folder / "rows" / "part-00000.parquet"])
    kinds = rows.filter(pl.col("trains_as") == "quadruplet").collect()["edit_type"].unique().sort().to_list()
    picked = dataset_samples.kept_rows(rows, kinds[:2])
    assert "ref_image_bytes" not in picked[0]
    found = dataset_samples.references_of(picked)
    assert set(found) == {row["position"] for row in picked}
    assert all(image.startswith(b"\x89PNG") for image in found.values())
