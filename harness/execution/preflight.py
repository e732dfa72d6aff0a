"""Preflight: runs every configuration of a study once through all stages on a few images, before training.

Configurations that passed are recorded in the cache by settings, code and machine, and are not run again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from harness.assembly.checkpoint import load
from harness.errors import DataError, HarnessError
from harness.execution.cell import run_cell
from harness.monitoring.progress import LineProgress, title
from harness.results.run_folder import RunFolder, in_short
from harness.study.cell_code import cell_code
from harness.study.study import Cell, CellSpec
from harness.system.cache_folder import cache_dir
from harness.system.device import default_device
from harness.system.environment import describe_environment
from harness.system.files import write_atomically

NUM_IMAGES = 2
"""Images of each split that a preflight uses; the controls swap the tokens of two images."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A configuration that failed.

    Args:
        cells: all cells with this configuration.
        stage: that raised; empty if the checkpoint that was written could not be loaded.
    """

    cells: tuple[Cell, ...]
    stage: str
    reason: str

    def __str__(self) -> str:
        cell = self.cells[0]
        settings = ", ".join(f"{path}={value}" for path, value in cell.point.items())
        where = f"arm {cell.arm}" + (f" at {settings}" if settings else "")
        stage = f", stage {self.stage!r}" if self.stage else ""
        return f"{where} ({len(self.cells)} cells){stage}: {in_short(self.reason)}"


def preflight(cells: Iterable[Cell], log: Callable[[str], None]) -> list[Failure]:
    """Runs each distinct configuration that has not passed yet; returns those that fail.

    An arm that is incompatible with the vision encoder passes: its cells are skipped, with the reason, when they run.
    """
    configurations: dict[str, list[Cell]] = {}
    for cell in cells:
        configurations.setdefault(_key(cell), []).append(cell)
    waiting = {key: group for key, group in configurations.items() if not _record(key).exists()}
    failures = []
    for number, (key, group) in enumerate(waiting.items(), start=1):
        started = time.perf_counter()
        outcome = _check(group)
        word = "failed" if isinstance(outcome, Failure) else outcome
        seconds = time.perf_counter() - started
        log(f"preflight {number} of {len(waiting)}: {title(group[0])} {word} ({seconds:.0f} s)")
        if isinstance(outcome, Failure):
            failures.append(outcome)
        else:
            write_atomically(_record(key), group[0].spec.model_dump_json().encode())
    return failures


def refuse_failures(failures: list[Failure]) -> None:
    """Raises a HarnessError that lists all failures, if there are any."""
    if failures:
        lines = "\n".join(f"  {failure}" for failure in failures)
        raise HarnessError(
            f"{len(failures)} configurations failed the preflight on {NUM_IMAGES} images; nothing was trained:\n"
            f"{lines}\nfix these arms or remove them from the study"
        )


def tiny(cell: Cell) -> Cell:
    """The cell with one training step of each stage and one timed run."""
    spec = cell.spec
    training = spec.training.model_copy(
        update={
            "steps": 1,
            "alignment_steps": min(1, spec.training.alignment_steps),
            "curriculum": None,
            "warmup_steps": 0,
            "batch_images": min(NUM_IMAGES, spec.training.batch_images),
        }
    )
    evaluation = spec.evaluation.model_copy(update={"latency_repeats": 1, "gallery_images": 1})
    return replace(cell, spec=spec.model_copy(update={"training": training, "evaluation": evaluation}))


def _check(group: list[Cell]) -> Failure | str:
    """Runs one configuration in a temporary folder; returns its failure, or its outcome as a word."""
    cell = tiny(group[0])
    with TemporaryDirectory(prefix="svp-preflight-") as place:
        folder = RunFolder(Path(place))
        try:
            row = run_cell(cell, folder, LineProgress(Console(quiet=True)), max_images=NUM_IMAGES)
            if row["status"] == "done":
                load(folder.checkpoint(cell.id), default_device())
        except DataError:
            raise
        except HarnessError as error:
            return Failure(tuple(group), "", str(error))
    if row["status"] == "failed":
        return Failure(tuple(group), row["failed_stage"], row["reason"])
    return "passed" if row["status"] == "done" else "will be skipped"


def _key(cell: Cell) -> str:
    """Hash of everything that determines whether a cell can run: settings, code and machine."""
    environment = {key: value for key, value in describe_environment().items() if not key.startswith("git_")}
    spec: CellSpec = tiny(cell).spec
    text = json.dumps([spec.model_dump(mode="json"), cell.code, cell_code(spec), environment], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _record(key: str) -> Path:
    return cache_dir() / "preflight" / f"{key}.json"
