"""Runs the unfinished stages of a cell and writes its row. Contains the only broad `except` around a cell."""

import json
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from harness.errors import DataError, HarnessError
from harness.evaluation.cost import PeakMemory
from harness.execution.rank_processes import train_in_processes
from harness.execution.stages import Stages
from harness.monitoring.progress import Progress
from harness.results.run_folder import STAGES, Row, RunFolder
from harness.study.cell_code import numeric_code
from harness.study.study import Cell
from harness.system.device import default_device
from harness.system.environment import describe_environment
from harness.system.files import is_disk_full
from projectors import IncompatibleError, ProjectorError

Samples = Sequence[pd.DataFrame]
"""The samples of a cell and those of its early budgets; empty after a stage that scores nothing."""


def run_cell(cell: Cell, folder: RunFolder, progress: Progress, max_images: int | None = None) -> Row:
    """Runs the unfinished stages of a cell in order, and writes its row after each.

    If a stage raises, the row gets the status `failed` and the reason. Columns of earlier stages are kept, and the next
    run resumes after them.

    Args:
        max_images: only the first images of each split are used; None for all.

    Raises:
        DataError: a file of the dataset is missing or damaged, so that other cells would fail too.
        OSError: the disk is full.
    """
    clock = time.perf_counter()
    row = _begin(cell, folder)
    before = row.get("wall_seconds") or 0.0
    stages = Stages(cell, folder, progress, max_images)
    stage = STAGES[0]
    samples: Samples = ()
    try:
        for stage in STAGES[_num_kept(row) :]:
            columns, samples = _run(stages, stage, row)
            row |= {**columns, "stage": stage, "wall_seconds": before + time.perf_counter() - clock}
            row["status"] = "done" if stage == STAGES[-1] else "unfinished"
            folder.write_cell(row, *samples)
        folder.training_checkpoint(cell.id).unlink(missing_ok=True)
        for steps in cell.spec.training.budget_steps:
            folder.budget_checkpoint(cell.id, steps).unlink(missing_ok=True)
        return row
    except IncompatibleError as error:
        row |= {"status": "skipped", "reason": str(error)}
    except DataError:
        raise
    except (HarnessError, ProjectorError) as error:
        row |= {"status": "failed", "failed_stage": stage, "reason": str(error)}
    except Exception as error:
        if is_disk_full(error):  # other cells would fail too
            raise
        row |= {"status": "failed", "failed_stage": stage, "reason": traceback.format_exc()}
    row["wall_seconds"] = before + time.perf_counter() - clock
    folder.write_cell(row)
    return row


def _begin(cell: Cell, folder: RunFolder) -> Row:
    """The row that earlier stages wrote, with the time and the environment of this attempt."""
    kept = folder.kept_row(cell.id)
    return {
        **kept,
        **cell.columns,
        "status": "unfinished",
        "failed_stage": "",
        "reason": "",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": json.dumps(_environment(kept)),
    }


def _environment(kept: Row) -> dict[str, Any]:
    """This machine's environment; if the cell was trained in another one, that is added as `trained_on`."""
    here = describe_environment()
    trained = json.loads(kept.get("environment") or "{}")
    trained = trained.get("trained_on", trained)
    return {**here, "trained_on": trained} if trained and trained != here else here


def _num_kept(row: Row) -> int:
    stage = row.get("stage")
    return STAGES.index(stage) + 1 if stage in STAGES else 0


def _run(stages: Stages, stage: str, row: Row) -> tuple[Row, Samples]:
    """Runs one stage; returns its columns, with code fingerprint and peak memory, and its samples."""
    memory = PeakMemory(default_device())
    code = numeric_code(stages.spec)
    samples: Samples = ()
    match stage:
        case "trained":
            is_alone = stages.spec.training.devices == 1
            columns = {**(stages.train() if is_alone else train_in_processes(stages)), "code": code}
        case "scored":
            columns, *samples = stages.score()
            columns["code"] = f"{row['code'].partition('-')[0]}-{code.partition('-')[2]}"
        case "costed":
            columns = stages.cost()
        case _:
            columns = stages.illustrate()
    peaks = (row.get("peak_memory_mib"), columns.get("peak_memory_mib"), memory.mib())
    return {**columns, "peak_memory_mib": max(peak or 0.0 for peak in peaks)}, samples
