"""Our models beside the published rows, as a table for the terminal, Markdown, HTML or LaTeX.

Scores of different judges are of different scales: every row names its judge, the parts of a table are kept apart, and
nothing is ranked, sorted by score or marked as best.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kiwi.benchmark.averages import equal_weight
from kiwi.benchmark.published import PublishedTable
from kiwi.benchmark.samples import BenchmarkError

Format = Literal["markdown", "html", "latex"]
NONE = "–"
OVERALL, WEIGHTED = "Overall", "by samples"
SCALES = (
    "Scores compare only within one judge and one set of samples: the published rows and ours are not to be ranked "
    "against each other."
)
WEIGHTS = (
    f"{OVERALL}: the paper's, columns with equal weight. {WEIGHTED}: every sample with equal weight, as the authors' "
    "script has it."
)


@dataclass(frozen=True)
class Part:
    """Rows of one judge: a heading, and for each row its cells."""

    title: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ScoreTable:
    """What is printed: headings of all columns, the parts in order, and notes below."""

    title: str
    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


def score_table(published: PublishedTable, ours: Sequence[tuple[str, Mapping[str, Any]]]) -> ScoreTable:
    """The published rows of a benchmark and `ours`: names, and what scores.json says.

    Ours are over the samples of the benchmark's form: reference-guided ones for RefVIE-Bench, by criterion, and ones
    guided by the instruction alone for OpenVE-Bench, by category. A copy of the source stands below each judge's.

    Raises BenchmarkError for scores that an earlier version wrote, which do not say of what form a sample is.
    """
    columns = ("Model", *(column.title for column in published.columns), OVERALL, WEIGHTED, "Samples")
    parts = [Part(f"Published: {published.source}; judge: {published.judge}", _published_rows(published))]
    by_judge: dict[str, list[tuple[str, ...]]] = {}
    for name, scores in ours:
        judge = f"Measured here: judge {scores['judge']}, samples of benchmark revision {scores['revision']}"
        by_judge.setdefault(judge, []).append(_our_row(published, name, scores))
    parts += [Part(judge, tuple(rows)) for judge, rows in by_judge.items()]
    notes = (SCALES, WEIGHTS) if ours else (WEIGHTS,)
    return ScoreTable(f"{published.title} ({published.scale})", columns, tuple(parts), notes)


def _published_rows(table: PublishedTable) -> tuple[tuple[str, ...], ...]:
    samples = f"{table.samples['identity_consistency'] + table.samples['video_quality']}" if table.samples else NONE
    return tuple(
        (
            f"{row.model} ({row.about})" if row.about else row.model,
            *(f"{score:.2f}" for score in row.scores),
            f"{row.overall:.2f}",
            _figure(table.sample_weighted_of(row)),
            samples,
        )
        for row in table.rows
    )


def _our_row(table: PublishedTable, name: str, scores: Mapping[str, Any]) -> tuple[str, ...]:
    found, weighted, samples = form_scores(table.name, scores)
    overall = equal_weight(found.values()) if len(found) == len(table.columns) else None
    cells = [_figure(found.get(column.name)) for column in table.columns]
    return (name, *cells, _figure(overall), _figure(weighted), str(samples))


def form_scores(benchmark: str, scores: Mapping[str, Any]) -> tuple[dict[str, float], float | None, int]:
    """Means by column, the mean over samples (None of none), and how many samples: of those of the benchmark's form.

    RefVIE-Bench is by criterion over reference-guided samples, OpenVE-Bench by category over the others.
    """
    rows = scores["per_sample"]
    if any("group" not in row for row in rows):
        raise BenchmarkError("these scores do not say how a sample is guided", "judge again: `kiwi bench judge`")
    by_reference = benchmark == "refvie-bench"
    rows = [row for row in rows if row["criteria"] and (row["group"] != "instruction") == by_reference]
    columns: dict[str, list[float]] = {}
    for row in rows:
        values = row["criteria"] if by_reference else {row["category"]: equal_weight(row["criteria"].values())}
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    means = {name: equal_weight(values) for name, values in columns.items()}
    weighted = equal_weight(equal_weight(row["criteria"].values()) for row in rows) if rows else None
    return means, weighted, len(rows)


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def render(table: ScoreTable, form: Format) -> str:
    """The table as text of that form."""
    makers: dict[Format, Callable[[ScoreTable], str]] = {"markdown": _markdown, "html": _html, "latex": _latex}
    return makers[form](table)


def _markdown(table: ScoreTable) -> str:
    lines = [f"### {_cell(table.title)}", ""]
    for part in table.parts:
        lines += [_cell(part.title), "", f"| {' | '.join(table.columns)} |"]
        lines += [f"| --- |{' ---: |' * (len(table.columns) - 1)}"]
        lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in part.rows]
        lines.append("")
    return "\n".join([*lines, *(f"{note}\n" for note in table.notes)])


def _cell(text: str) -> str:
    return re.sub(r"([\\|`*_<\[])", r"\\\1", text).replace("\n", " ")


def _html(table: ScoreTable) -> str:
    width = len(table.columns)
    heads = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    bodies = []
    for part in table.parts:
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in part.rows
        )
        title = f'<tr><th colspan="{width}" scope="rowgroup">{html.escape(part.title)}</th></tr>'
        bodies.append(f"<tbody>\n{title}\n{rows}\n</tbody>")
    notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    caption = html.escape(table.title)
    body = "\n".join(bodies)
    return f"<table>\n<caption>{caption}</caption>\n<thead><tr>{heads}</tr></thead>\n{body}\n</table>\n{notes}\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
}  # fmt: skip


def _latex(table: ScoreTable) -> str:
    width = len(table.columns)
    lines = [r"\begin{table}", rf"\caption{{{_tex(table.title)}. {_tex(' '.join(table.notes))}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\hline"]
    lines += [" & ".join(_tex(column) for column in table.columns) + r" \\"]
    for part in table.parts:
        lines += [r"\hline", rf"\multicolumn{{{width}}}{{l}}{{{_tex(part.title)}}} \\"]
        lines += [" & ".join(_tex(cell) for cell in row) + r" \\" for row in part.rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}", ""])


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
