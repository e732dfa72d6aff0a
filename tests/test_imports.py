"""Imports point down, and a few libraries are met in one place only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("projectors", "harness", "reports", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MACHINERY = {"__init__", "contract", "layers", "registry"}
PROJECTOR_FILES = {path.stem for path in (ROOT / "projectors").iterdir()} - MACHINERY

LEVELS = (
    ("harness.predict", "harness.run"),
    ("harness.execution", "harness.listing", "harness.needs", "harness.plan", "harness.provenance"),
    ("harness.cells", "harness.publishing", "harness.report_process", "harness.search", "harness.tracking"),
    ("harness.study_runs",),
    ("harness.mlflow_store",),
    ("harness.run_contents",),
    ("harness.worker",),
    ("harness.preflight", "harness.timing"),
    ("harness.cell",),
    ("harness.stages",),
    ("harness.checkpoint",),
    ("harness.assembly", "harness.gallery", "harness.yardstick"),
    ("harness.cost", "harness.latency"),
    ("harness.pipeline",),
    ("harness.progress",),
    ("harness.study",),
    ("harness.cell_code", "harness.study_file"),
    ("harness.study_checks",),
    ("harness.sections", "harness.study_schema"),
    ("harness.evaluation",),
    ("harness.training",),
    ("harness.answers", "harness.batches", "harness.metrics"),
    ("harness.features", "harness.pretraining"),
    ("harness.superpixels",),
    ("harness.encodings",),
    ("harness.data",),
    ("harness.backbone",),
    (
        "harness.cache",
        "harness.claims",
        "harness.device",
        "harness.environment",
        "harness.fingerprint",
        "harness.frame",
        "harness.muon",
        "harness.precision",
        "harness.published_metrics",
        "harness.recipe",
    ),
    ("harness.panel", "harness.yaml_errors", "harness.yaml_reader"),
    ("harness.records", "harness.stats", "harness.yaml_tree"),
    ("harness.sent_runs", "harness.uris"),
    ("harness.errors", "harness.files", "harness.labels"),
    ("projectors",),
)
"""Top down; a module imports only from levels below its own."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def level(module: str) -> int | None:
    """Where a module stands; a package's place is its members'."""
    matches = [i for i, row in enumerate(LEVELS) for name in row if module == name or module.startswith(f"{name}.")]
    return matches[0] if matches else None


def within(path: Path) -> str:
    """The package of `LEVELS` that a file belongs to, inside which it may import freely."""
    return next(
        (name for row in LEVELS for name in row if f"{module_name(path)}.".startswith(f"{name}.")), module_name(path)
    )


def test_every_module_of_the_harness_has_a_level():
    modules = [module_name(path) for path in FILES if path.is_relative_to(ROOT / "harness")]
    assert [module for module in modules if module != "harness" and level(module) is None] == []


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[-2] != "reports"], ids=module_name)
def test_imports_point_down(path):
    own = level(module_name(path))
    if own is None:
        return
    upward = {
        name
        for name in imported(path)
        if (other := level(name)) is not None and other <= own and not f"{name}.".startswith(f"{within(path)}.")
    }
    assert upward == set()


def uses(path: Path, library: str) -> bool:
    return any(name.split(".")[0] == library for name in imported(path))


@pytest.mark.parametrize(("library", "only"), [("optuna", "harness.search"), ("mlflow", "harness.mlflow_store")])
def test_a_library_is_met_in_one_module(library, only):
    assert [module_name(path) for path in FILES if uses(path, library)] == [only]


def test_projectors_know_nothing_of_the_harness():
    assert [path for path in FILES if "projectors" in path.parts and uses(path, "harness")] == []


def test_the_harness_names_no_projector():
    named = {f"projectors.{name}" for name in PROJECTOR_FILES}
    others = [path for path in FILES if path.relative_to(ROOT).parts[0] != "projectors"]
    assert [(path, found) for path in others if (found := imported(path) & named)] == []


REPORTS_MAY_IMPORT = {"claims", "errors", "labels", "panel", "published_metrics", "records", "stats"}


def test_reports_see_tables_only():
    for path in FILES:
        if path.relative_to(ROOT).parts[0] != "reports":
            continue
        assert not uses(path, "torch"), path
        harness = {name.split(".")[1] for name in imported(path) if name.startswith("harness.")}
        assert harness <= REPORTS_MAY_IMPORT, path


def test_only_commands_print():
    for path in FILES:
        tree = ast.parse(path.read_text())
        prints = any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            for node in ast.walk(tree)
        )
        is_command = path.stem in {"run", "__main__"} or '__name__ == "__main__"' in path.read_text()
        assert is_command or not prints, path


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_all_is_sorted(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
            # As ruff sorts it: constants, then classes, then functions.
            assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
