"""Every component is a thin door: short, pinned to one image, and importing only what its task needs."""

import ast
import importlib
from pathlib import Path

import pytest

COMPONENTS = sorted((Path(__file__).resolve().parents[2] / "components").glob("*/component.py"))


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.parent.name)
def test_a_body_has_at_most_thirty_lines_and_calls_into_kiwi(path):
    tree = ast.parse(path.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == [path.parent.name]
    (function,) = functions
    assert function.end_lineno - function.body[0].lineno + 1 <= 30
    imported = {node.module.split(".")[0] for node in ast.walk(function) if isinstance(node, ast.ImportFrom)}
    assert "kiwi" in imported
    assert "kfp" not in imported


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.parent.name)
def test_a_component_installs_nothing_when_it_runs(path):
    from components.image import IMAGE

    component = getattr(importlib.import_module(f"components.{path.parent.name}.component"), path.parent.name)
    container = component.component_spec.implementation.container
    assert container.image == IMAGE
    assert "pip install" not in " ".join(map(str, container.command))


def test_kiwi_never_imports_kfp():
    library = Path(__file__).resolve().parents[2] / "kiwi"
    for path in library.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "kfp" for name in names), path
