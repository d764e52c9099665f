"""What `kiwi bench prefer --results` prints for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

FLAGS = {
    "failed_checks": "failed attention checks",
    "one_answer": "gave one answer throughout",
    "hasty": "voted before the clips had played",
}


def print_results(said: dict[str, Any]) -> None:
    """Prints win rates, scores, agreement and raters; without flagged raters too, where there are any."""
    console = Console(highlight=False)
    console.print(
        f"\n[bold]{said['votes']} of {said['votes_wanted']} votes[/] on {said['comparisons']} comparisons of "
        f"{said['samples']} samples; {said['undone']} taken back",
        soft_wrap=True,
    )
    if not said["raters"]:
        console.print("no votes yet")
        return
    _print_tally(console, "all raters", said["all"])
    if said["without_flagged"] is not None:
        _print_tally(console, f"without {', '.join(said['flagged'])}", said["without_flagged"])
    console.print(_raters(said["raters"]))


def _print_tally(console: Console, title: str, tally: dict[str, Any]) -> None:
    table = Table("", "win rate (95%)", "won", "lost", "tied", "both bad", title=escape(title), title_justify="left")
    for pair in tally["pairs"]:
        table.add_row(f"{escape(pair['first'])} over {escape(pair['second'])}", *_pair(pair), style="bold")
        if len(pair["kinds"]) > 1:
            for kind, figures in pair["kinds"].items():
                table.add_row(f"  {escape(kind or 'other')}", *_pair(figures), style="dim")
    console.print(table)
    if tally["scores"] is None:
        console.print(f"no Bradley–Terry scores: {tally['scores_missing']}")
    else:
        ranked = sorted(tally["scores"].items(), key=lambda each: -each[1]["value"])
        scores = ", ".join(f"{escape(name)} [bold]{_range(each, '.0f')}[/]" for name, each in ranked)
        console.print(f"Bradley–Terry (Elo scale, mean 1000): {scores}", soft_wrap=True)
    agreement = tally["agreement"]
    if agreement["alpha"] is not None:
        console.print(
            f"agreement on {agreement['comparisons']} shared comparisons: Krippendorff's alpha "
            f"{_range(agreement['alpha'], '.2f')}, {agreement['percent']:.0f}% alike"
        )
    if tally["left_share"] is not None:
        console.print(f"left chosen: {_percent(tally['left_share'])} of decided votes\n")


def _pair(figures: dict[str, Any]) -> list[str]:
    rate = "–" if figures["win_rate"] is None else _percent(figures["win_rate"])
    return [rate, *(str(figures[name]) for name in ("wins", "losses", "ties", "both_bad"))]


def _percent(estimate: dict[str, float]) -> str:
    return _range({name: 100 * value for name, value in estimate.items()}, ".0f", "%")


def _range(estimate: dict[str, float], form: str, unit: str = "") -> str:
    value, low, high = (format(estimate[name], form) for name in ("value", "low", "high"))
    return f"{value}{unit} ({low} to {high})"


def _raters(records: list[dict[str, Any]]) -> Table:
    table = Table("rater", "votes", "checks passed", "failed", "unclear", "median seconds", "flags")
    for each in records:
        checks = (str(each[f"checks_{name}"]) for name in ("passed", "failed", "unclear"))
        flags = ", ".join(FLAGS[flag] for flag in each["flags"])
        table.add_row(escape(each["rater"]), str(each["votes"]), *checks, f"{each['median_seconds']:.1f}", flags)
    return table
