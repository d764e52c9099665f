"""The tree of MLflow runs for the terminal: attempts, their tasks, how long each took and what it said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiwi.tracking.server import answers, connect

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {"FINISHED": "green", "FAILED": "red", "KILLED": "red", "RUNNING": "yellow"}


def list_runs(uri: str, experiment: str, limit: int = 5) -> list[dict[str, Any]]:
    """The newest `limit` parent runs with their tasks, oldest task first, as plain data.

    Each: {"run_id", "name", "status", "started" (s since 1970), "seconds" (None while it runs), "metrics", "params",
    "tags", "tasks": [same without tasks]}. Raises TrackingUnavailable.
    """
    client = connect(uri)
    with answers(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return []
        parents = client.search_runs(
            [found.experiment_id], "tags.`kiwi.kind` = 'pipeline'", max_results=limit, order_by=["start_time DESC"]
        )
        tree = []
        for parent in parents:
            said = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
            tasks = client.search_runs([found.experiment_id], said, max_results=1000, order_by=["start_time ASC"])
            tree.append({**_row(parent), "tasks": [_row(task) for task in tasks]})
        return tree


def _row(run: Any) -> dict[str, Any]:
    info = run.info
    ended = info.end_time
    return {
        "run_id": info.run_id,
        "name": info.run_name,
        "status": info.status,
        "started": info.start_time / 1000,
        "seconds": None if ended is None else max(0.0, (ended - info.start_time) / 1000),
        "metrics": dict(run.data.metrics),
        "params": dict(run.data.params),
        "tags": {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
    }


def print_tree(uri: str, experiment: str, limit: int = 5, console: Console | None = None) -> None:
    """Prints `list_runs` as a tree (`kiwi pipeline runs`)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    console = console or Console()
    runs = list_runs(uri, experiment, limit)
    if not runs:
        console.print(f"no runs in experiment {experiment!r}", markup=False)
    for run in runs:
        dataset = run["tags"].get("dataset.version", "")
        tree = Tree(f"{_line(run)}  {escape(dataset)}")
        for task in run["tasks"]:
            figures = ", ".join(
                f"{key} {value:.4g}" for key, value in sorted(task["metrics"].items())[:5] if key != "seconds"
            )
            tree.add(f"{_line(task)}  [dim]{escape(figures)}[/dim]")
        console.print(tree)


def _line(run: dict[str, Any]) -> str:
    colour = COLOURS.get(run["status"], "white")
    seconds = "" if run["seconds"] is None else f"{run['seconds']:.1f} s"
    return f"[bold]{run['name']}[/bold]  [{colour}]{run['status'].lower()}[/{colour}]  {seconds}  {run['run_id'][:8]}"
