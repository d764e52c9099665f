"""What `kiwi run` prints at its end: the funnel, what the stages learned, the benchmark, the decision, the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kiwi.workspace import Workspace, read_json

Json = dict[str, Any]


def print_verdict(workspace: Workspace, *, to_stderr: bool = False) -> None:
    """Prints what the run's summary holds, for people."""
    from rich.console import Console

    console = Console(stderr=to_stderr, highlight=False)
    summary = read_json(workspace.summary)
    for line in _lines(summary, workspace):
        console.print(line, soft_wrap=True)


def _lines(summary: Json, workspace: Workspace) -> Iterator[str]:
    from rich.markup import escape

    dataset = summary["dataset"]
    yield (
        f"\n[bold]Dataset[/]    {escape(str(dataset['version']))}: {dataset['pairs']} pairs, {dataset['quadruplets']} "
        f"quadruplets{_reasons('rejected', dataset['rejected'])}{_reasons('failed', dataset['failed'])}"
    )
    yield from (f"           [dim]{escape(row)}[/]" for row in _funnel(workspace))
    for stage in summary["stages"]:
        losses = f"{_figure(stage['loss_first'])} → {_figure(stage['loss_last'])}"
        yield (
            f"[bold]{escape(stage['name']):<10}[/] {stage['steps']} steps in {stage['seconds']:.0f} s, "
            f"loss {losses}, {stage['samples_per_second']:.0f} samples/s"
        )
    yield from (f"{title} {escape(line)}" for title, line in _titled("Benchmark", _benchmark(summary["benchmark"])))
    yield from _decision(summary["decision"], summary["model"])
    yield f"[bold]Report[/]     {escape(summary['report'])}"
    runs = f"kiwi runs --workdir {workspace.root}"
    yield f"[bold]Tracking[/]   {escape(summary['tracking_uri'])}  ({escape(runs)})\n"


def _titled(title: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    yield from ((f"[bold]{title:<10}[/]" if place == 0 else " " * 10, line) for place, line in enumerate(lines))


def _benchmark(said: Json) -> list[str]:
    """The overall with its interval, and what it is compared with: how far apart, and how sure that is."""
    if said["overall"] is None:
        return [f"no edit could be judged (judge {said['judge']}, {said['samples']} samples)"]
    ends = (said.get("intervals") or {}).get("overall")
    sure = f" (95%: {ends[0]:.3f} to {ends[1]:.3f})" if ends else " (too few samples to say how sure)"
    coverage = said.get("coverage")
    judged = f", {coverage:.1%} of them judged" if coverage is not None and coverage < 1 else ""
    lines = [f"{said['overall']:.3f} of 5{sure}, {said['samples']} samples{judged}, judge {said['judge']}"]
    comparison = said.get("comparison")
    copied = said["baselines"].get("copy_source", {}).get("overall")
    if copied is not None and (comparison is None or comparison["with"] == "champion"):
        lines.append(f"copying the source: {copied:.3f}")
    if comparison and comparison["difference"] is not None:
        lines.append(_comparison(comparison))
    return lines


def _comparison(said: Json) -> str:
    from kiwi.reports.figures import chance

    of_champion = said["with"] == "champion"
    over = f"champion version {said['version']}" if of_champion else "copying the source"
    ends = f" (95%: {said['interval'][0]:+.3f} to {said['interval'][1]:+.3f})" if said["interval"] else ""
    sure = f", chance of being better {chance(said['chance_better'])}" if said["chance_better"] is not None else ""
    return f"over {over} ({_figure(said['overall'])}): {said['difference']:+.3f}{ends}{sure}"


def _decision(decision: Json, model: Json) -> Iterator[str]:
    """What became of the model, in words: promoted, waiting for people, or held and why."""
    from rich.markup import escape

    from kiwi.reports.decision import in_words

    name = escape(f"{model['name']} version {model['version']}")
    waiting = decision.get("waits")
    if waiting:
        what = "waits for approvals" if waiting["for"] == "approvals" else "not promoted"
        yield f"[bold]Decision[/]   [yellow]{what}[/]: {name} passed the gate and stays a challenger"
        yield f"           {escape(waiting['why'])}"
        for verb in ("approve", "promote"):
            if verb in waiting:
                yield f"           to {verb}: {escape(waiting[verb])}"
    elif decision["decision"] != "promote":
        yield f"[bold]Decision[/]   [yellow]held[/]: {name} stays a challenger, because"
    elif "champion" in model["aliases"]:
        yield f"[bold]Decision[/]   [green]promoted[/]: {name} is the champion"
    else:
        yield f"[bold]Decision[/]   [yellow]passed the gate[/]: {name} is no champion"
    yield from (f"           {escape(in_words(str(reason)))}" for reason in decision["reasons"])


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _reasons(what: str, counts: dict[str, int]) -> str:
    total = sum(counts.values())
    if not total:
        return ""
    first = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items(), key=lambda it: -it[1])[:3])
    return f", {total} {what} ({first}{', …' if len(counts) > 3 else ''})"


def _funnel(workspace: Workspace) -> list[str]:
    from kiwi.curation.funnel import idle

    published = read_json(workspace.root / "dataset.json")
    manifest: Json = read_json(Path(published["path"]) / "manifest.json")
    return [
        f"{row['stage']:<12} {row['rows_in']:>6} in  {row['kept']:>6} kept"
        + (f"  {sum(row['rejected'].values())} rejected" if row["rejected"] else "")
        + (f"  {sum(row['failed'].values())} failed" if row["failed"] else "")
        for row in manifest["funnel"]
        if not idle(row)
    ]
