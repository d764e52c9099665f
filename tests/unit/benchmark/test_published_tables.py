"""Published scores as data, the two overalls, and the tables that stand ours beside them."""

from __future__ import annotations

import html.parser
import json
import subprocess
import sys

import pytest

from kiwi.benchmark.averages import equal_weight, sample_weighted
from kiwi.benchmark.published import published_table, published_tables
from kiwi.benchmark.samples import BenchmarkError
from kiwi.benchmark.tables import SCALES, form_scores, render, score_table
from kiwi.errors import UsageError

OVERALLS = {  # as printed in the paper
    "refvie-bench": [3.29, 3.99, 2.96, 3.31],
    "openve-bench": [3.49, 1.57, 1.19, 1.45, 2.22, 2.18, 2.13, 2.50, 2.92, 2.98, 3.02],
}


@pytest.mark.parametrize("name", OVERALLS)
def test_our_formula_gives_the_published_overalls_from_the_published_scores(name):
    table = published_table(name)
    assert [row.overall for row in table.rows] == OVERALLS[name]
    assert [round(table.overall_of(row), 2) for row in table.rows] == OVERALLS[name]


def test_the_sample_weighted_overall_is_another_figure_and_is_never_given_where_samples_are_not_counted():
    refvie, openve = published_table("refvie-bench"), published_table("openve-bench")
    runway = refvie.rows[0]
    by_hand = (70 * (3.79 + 3.65 + 3.58) / 3 + 40 * (3.33 + 2.81 + 2.58) / 3) / 110
    assert refvie.sample_weighted_of(runway) == pytest.approx(by_hand)
    assert round(by_hand, 2) != runway.overall
    assert all(openve.sample_weighted_of(row) is None for row in openve.rows)


def test_there_is_no_overall_of_nothing():
    with pytest.raises(ValueError, match="no score"):
        equal_weight([])
    assert sample_weighted({"a": 1.0, "b": 4.0}, {"a": 2, "b": 1}) == 2.0


def test_every_published_table_names_its_source_and_an_unknown_benchmark_is_refused():
    assert all("arXiv:2603.02175" in table.source and table.judge for table in published_tables().values())
    with pytest.raises(UsageError, match="no published scores"):
        published_table("another")


def row(name, group, category, *values):
    names = ("reference_similarity", "matting_quality", "video_quality")
    if "background" not in category:
        names = ("identity_consistency", "temporal_consistency", "physical_consistency")
    scored = dict(zip(names, values, strict=True)) if values else None
    return {"id": name, "group": group, "category": category, "criteria": scored}


OURS = {
    "judge": "measured/1",
    "revision": "r1",
    "per_sample": [
        row("a", "subject", "subject_reference", 4.0, 3.0, 2.0),
        row("b", "subject", "subject_reference", 2.0, 1.0, 1.0),
        row("c", "background", "background_reference", 5.0, 4.0, 3.0),
        row("d", "subject", "subject_reference"),
        row("e", "instruction", "local_add", 2.0, 2.0, 2.0),
        row("f", "instruction", "global_style", 5.0, 4.0, 3.0),
        row("g", "instruction", "global_style", 3.0, 2.0, 1.0),
    ],
}


def test_ours_are_of_the_benchmarks_form_and_unjudged_samples_are_not_counted():
    means, weighted, samples = form_scores("refvie-bench", OURS)
    assert means["identity_consistency"] == 3.0
    assert means["matting_quality"] == 4.0
    assert (samples, weighted) == (3, pytest.approx((3 + 4 / 3 + 4) / 3))
    means, weighted, samples = form_scores("openve-bench", OURS)
    assert means == {"local_add": 2.0, "global_style": 3.0}
    assert (samples, weighted) == (3, pytest.approx(8 / 3))


def test_a_row_with_a_missing_column_has_no_overall():
    whole, part = (score_table(published_table(name), [("ours", OURS)]) for name in OVERALLS)
    assert whole.parts[1].rows[0][7] == "3.08"
    assert part.parts[1].rows[0] == ("ours", "3.00", "–", "–", "–", "2.00", "–", "2.67", "3")


def test_ours_and_theirs_are_parts_of_their_own_in_the_order_given_and_the_table_says_why():
    table = score_table(published_table("refvie-bench"), [("zeta", OURS), ("b", OURS | {"judge": "mllm/x"})])
    assert [len(part.rows) for part in table.parts] == [4, 1, 1]
    assert "measured/1" in table.parts[1].title
    assert "mllm/x" in table.parts[2].title
    assert [row[0] for row in table.parts[0].rows][:2] == ["Runway Aleph", "Kling-O1"]
    for form in ("markdown", "html", "latex"):
        assert SCALES in render(table, form).replace("\n", " ")


def test_scores_that_do_not_say_how_samples_are_guided_are_refused():
    old = OURS | {"per_sample": [{"id": "a", "criteria": {"identity_consistency": 3.0}}]}
    with pytest.raises(BenchmarkError, match="judge again"):
        score_table(published_table("refvie-bench"), [("old", old)])


def test_names_cannot_break_out_of_a_table():
    table = score_table(published_table("refvie-bench"), [("a|b_<script>&%\\", OURS)])

    class Tags(html.parser.HTMLParser):
        seen: set[str] = set()

        def handle_starttag(self, tag, attributes):
            self.seen.add(tag)

    Tags().feed(render(table, "html"))
    assert Tags.seen == {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    lines = [line for line in render(table, "markdown").splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert r"a|b\_<script>\&\%\textbackslash{}" in render(table, "latex")


def test_the_command_writes_every_form(tmp_path):
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps(OURS))
    out = tmp_path / "tables.md"
    for form, sign in (("markdown", "| --- |"), ("html", "<table>"), ("latex", r"\begin{tabular}")):
        arguments = ["bench", "table", f"ours={scores}", "--format", form, "--out", str(out)]
        done = subprocess.run([sys.executable, "-m", "kiwi", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        written = out.read_text()
        assert written.count(sign) >= 2
        assert "Kling-O1" in written
        assert "ours" in written
