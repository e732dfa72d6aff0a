"""Imports point down, and a few libraries are imported in one place only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for top in ("projectors", "harness", "reports") for path in (ROOT / top).rglob("*.py"))
LEVELS = """run predict __main__ / execution / planning worker / queue / monitoring pretraining / training evaluation
    / assembly / study / cache / superpixels / model data / results / system / errors"""
"""Packages of the harness, top down: a package imports only packages below its own level."""
LEVEL = {name: number for number, row in enumerate(LEVELS.split("/")) for name in row.split()}
SHARED = {"__init__", "contract", "errors", "layers", "registry"}
PROJECTORS = {("projectors", path.stem) for path in (ROOT / "projectors").iterdir() if path.stem not in SHARED}
ONLY = {"optuna": "harness/queue/", "mlflow": "harness/monitoring/mlflow_store.py"}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, and every name that it imports from one."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    top, *parts = path.relative_to(ROOT).with_suffix("").parts
    own = "__main__" if parts[-1] == "__main__" else parts[0]
    names = [name.split(".") for name in imported(path)]
    packages = {name[1] for name in names if name[0] == "harness"} - {own}
    if top == "harness" and own != "__init__":
        assert {name for name in packages if LEVEL[name] <= LEVEL[own]} == set()
    assert top not in ("projectors", "reports") or packages <= ({"results", "errors"} if top == "reports" else set())
    assert top == "projectors" or not {tuple(name[:2]) for name in names} & PROJECTORS
    assert top != "reports" or "torch" not in {name[0] for name in names}
    for library, only in ONLY.items():
        assert library not in {name[0] for name in names} or str(path.relative_to(ROOT)).startswith(only)
