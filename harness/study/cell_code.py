"""The code that a cell's result depends on, as fingerprints of its source."""

import projectors
from harness import data, superpixels
from harness.study.cell_spec import CellSpec
from harness.system.fingerprint import fingerprint

_TRAINING = ("harness.assembly.assembly", "harness.training.trainer")
_EVALUATION = ("harness.evaluation.text_metrics", "harness.evaluation.evaluator", "harness.results.metrics")


def component_code(spec: CellSpec) -> str:
    """Of a cell's projector and, where it has one, of its superpixel source."""
    modules = [projectors.get(spec.projector["name"]).__module__]
    if spec.superpixels is not None:
        modules.append(superpixels.get(spec.superpixels["name"]).segment.__module__)
    return fingerprint(*modules)


def numeric_code(spec: CellSpec) -> str:
    """Of the harness's code that trains and of that which scores a cell, as `<training>-<evaluation>`."""
    return f"{fingerprint(*_TRAINING, _dataset(spec))}-{fingerprint(*_EVALUATION)}"


def cell_code(spec: CellSpec) -> str:
    """Of the whole life of a cell: of everything that `harness.execution.cell` and the dataset import."""
    return fingerprint("harness.execution.cell", _dataset(spec))


def _dataset(spec: CellSpec) -> str:
    return data.get(spec.data["name"]).__name__
