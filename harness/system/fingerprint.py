"""Fingerprints of source code, which ignore comments, docstrings and formatting.

A fingerprint covers a module and every module that it imports, directly or indirectly, within its own top-level
package and this project; of the harness, only code that affects numerical results. A result is identified by the
fingerprints of its projector and superpixel method, a cached file by that of the code that computed it.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.machinery import all_suffixes
from importlib.util import find_spec
from pathlib import Path

_INFRASTRUCTURE = (
    "cache.shared_work",
    "errors",
    "model.weights.checksums",
    "model.weights.known",
    "model.weights.npm",
    "model.weights.packaged",
    "model.weights.resolution",
    "monitoring",
    "results",
    "study",
    "system",
)
"""Packages and modules of the harness that do not affect numerical results; weights are identified by hash."""
_NUMERIC = ("results.metrics", "system.precision", "study.training_config")
"""Modules in these packages that do affect numerical results."""
_DIGITS = 8


@cache
def fingerprint(*modules: str) -> str:
    """First digits of the hash of these modules and of everything they import within the covered packages."""
    digest = hashlib.sha256()
    for name in sorted(_closure(modules)):
        digest.update(f"{name}\0{_content(name)}\0".encode())
    return digest.hexdigest()[:_DIGITS]


def _closure(modules: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imported(name)
    return found


@cache
def _imported(name: str) -> tuple[str, ...]:
    """The modules that a module imports from its own top-level package and from this project."""
    tree = _tree(name)
    if tree is None:
        return ()
    packages = {name.partition(".")[0], "harness", "projectors"}
    candidates = dict.fromkeys(_import_names(tree, name))
    return tuple(
        each
        for each in candidates
        if each.partition(".")[0] in packages and not _is_infrastructure(each) and _source(each) is not None
    )


def _is_infrastructure(name: str) -> bool:
    path = name.removeprefix("harness.")
    is_listed = any(path == part or path.startswith(f"{part}.") for part in _INFRASTRUCTURE)
    return path != name and is_listed and path not in _NUMERIC


def _import_names(tree: ast.AST, module: str) -> Iterator[str]:
    """Every name in import statements that may be a module, except under `TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = _base(node, module)
            yield package
            yield from (f"{package}.{alias.name}" for alias in node.names)
        else:
            yield from _import_names(node, module)


def _base(node: ast.ImportFrom, module: str) -> str:
    """The package of `from X import ...`, with relative imports resolved."""
    if not node.level:
        return node.module or ""
    source = _source(module)
    is_package = source is not None and source.name == "__init__.py"
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


@cache
def _source(name: str) -> Path | None:
    """The file of a module, found without importing it; None if there is no such module or it has no file."""
    package, *rest = name.split(".")
    spec = find_spec(package)
    if spec is None or not spec.origin:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if not rest else None
    place = Path(spec.submodule_search_locations[0], *rest)
    files = (place / "__init__.py", *(place.with_name(place.name + suffix) for suffix in all_suffixes()))
    return next((file for file in files if file.is_file()), None)


@cache
def _tree(name: str) -> ast.Module | None:
    """The syntax tree of a module; None if its file is not Python source."""
    path = _source(name)
    if path is None or path.suffix != ".py":
        return None
    return ast.parse(path.read_text(encoding="utf-8"))


def _content(name: str) -> str:
    """The code of a module without comments, docstrings and formatting; the hash of a file that is not source."""
    tree = _tree(name)
    if tree is None:
        path = _source(name)
        return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    return ast.dump(_WithoutDocstrings().visit(tree))


class _WithoutDocstrings(ast.NodeTransformer):
    """Removes expression statements that are strings, in place."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node
