"""The benchmark's files import one another in one direction."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import kiwi.benchmark

FOLDER = Path(kiwi.benchmark.__file__).parent


def test_no_file_of_the_benchmark_imports_in_a_circle() -> None:
    def imported(path: Path) -> set[str]:
        """What a file imports of its neighbours, at the top, for types alone, or inside a function."""
        nodes = ast.walk(ast.parse(path.read_text()))
        modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        return {name.removeprefix("kiwi.benchmark.") for name in modules if name.startswith("kiwi.benchmark.")}

    order = list(TopologicalSorter({path.stem: imported(path) for path in FOLDER.glob("*.py")}).static_order())
    assert {"judge", "listed_scores", "measured", "samples"} <= set(order)
