"""What `kiwi run` prints at its end: the funnel, what the stages learned, the benchmark, the decision, the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kiwi.workspace import Workspace, read_json


def print_verdict(workspace: Workspace, *, to_stderr: bool = False) -> None:
    """Prints what the run's summary holds, for people."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=to_stderr, highlight=False)
    summary = read_json(workspace.summary)
    dataset = summary["dataset"]
    console.print(
        f"\n[bold]Dataset[/]    {dataset['version']}: {dataset['pairs']} pairs, {dataset['quadruplets']} quadruplets"
        f"{_reasons('rejected', dataset['rejected'])}{_reasons('failed', dataset['failed'])}",
        soft_wrap=True,
    )
    for row in _funnel(workspace):
        console.print(f"           [dim]{row}[/]")
    for stage in summary["stages"]:
        console.print(
            f"[bold]{stage['name']:<10}[/] {stage['steps']} steps in {stage['seconds']:.0f} s, loss "
            f"{stage['loss_first']:.3f} → {stage['loss_last']:.3f}, {stage['samples_per_second']:.0f} samples/s"
        )
    benchmark = summary["benchmark"]
    baseline = benchmark["baselines"].get("copy_source", {}).get("overall")
    beside = f" (copying the source: {baseline:.3f})" if baseline is not None else ""
    console.print(
        f"[bold]Benchmark[/]  {benchmark['overall']:.3f} of 5{beside}, {benchmark['samples']} samples, "
        f"judge {benchmark['judge']}"
    )
    decision, model = summary["decision"], summary["model"]
    colour = "green" if decision["decision"] == "promote" else "yellow"
    console.print(f"[bold]Decision[/]   [{colour}]{decision['decision']}[/] {model['name']} version {model['version']}")
    for reason in decision["reasons"]:
        console.print(f"           {escape(reason)}", soft_wrap=True)
    console.print(f"[bold]Report[/]     {summary['report']}", soft_wrap=True)
    console.print(
        f"[bold]Tracking[/]   {summary['tracking_uri']}  (kiwi runs --workdir {workspace.root})\n", soft_wrap=True
    )


def _reasons(what: str, counts: dict[str, int]) -> str:
    total = sum(counts.values())
    if not total:
        return ""
    first = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items(), key=lambda it: -it[1])[:3])
    return f", {total} {what} ({first}{', …' if len(counts) > 3 else ''})"


def _funnel(workspace: Workspace) -> list[str]:
    from kiwi.curation.funnel import idle

    published = read_json(workspace.root / "dataset.json")
    manifest: dict[str, Any] = read_json(Path(published["path"]) / "manifest.json")
    return [
        f"{row['stage']:<12} {row['rows_in']:>6} in  {row['kept']:>6} kept"
        + (f"  {sum(row['rejected'].values())} rejected" if row["rejected"] else "")
        + (f"  {sum(row['failed'].values())} failed" if row["failed"] else "")
        for row in manifest["funnel"]
        if not idle(row)
    ]
