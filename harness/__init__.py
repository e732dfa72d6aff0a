"""A benchmarking and ablation harness for visual projectors in MLLM-based referring image segmentation.

    study = Study.from_yaml("studies/sspe_sweep.yaml")
    results = run_study(study)
    results.table()
    load_cell("runs/sspe_sweep/cells/<cell>.safetensors").predict("photo.jpg", "the red circle")

`python -m harness.run` does the same from the command line. The names are imported when they are first used, so that
the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.evaluation.trained_cell import TrainedCell, load_cell
    from harness.execution.session import run_study
    from harness.study.study import Study
    from reports.study_results import Results

__all__ = ["Results", "Study", "TrainedCell", "load_cell", "run_study"]

_MODULES = {
    "Results": "reports.study_results",
    "Study": "harness.study.study",
    "TrainedCell": "harness.evaluation.trained_cell",
    "load_cell": "harness.evaluation.trained_cell",
    "run_study": "harness.execution.session",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
