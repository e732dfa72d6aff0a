"""Runs a study in its folder: from points to cells to tables, search, tracking; whatever is there is not made again."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.environment import command, describe_environment
from harness.progress import Progress
from harness.records import RunFolder
from harness.search import Search, default_url
from harness.study import Cell, Study
from harness.tracking import Tracker
from harness.worker import RunCell, Worker

MakeReport = Callable[[Path], Path]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did.

    Args:
        cells: every cell of the study.
        num_run: of them, how many ran this time.
        num_failed: of them, how many have no result.
        num_others: rows in the folder that belong to other versions of the study.
    """

    cells: tuple[Cell, ...]
    num_run: int
    num_failed: int
    num_others: int


def execute(study: Study, folder: RunFolder, storage: str | None, run_cell: RunCell, progress: Progress) -> Outcome:
    """Runs what is not finished and brings tables, importance and MLflow up to date.

    Args:
        storage: URL of Optuna's storage; SQLite in the folder if None.

    Raises:
        HarnessError: another run holds the folder, or the storage cannot be opened.
    """
    with folder.held():
        folder.write_if_changed(folder.study, study.resolved())
        tracker = Tracker(study.name, folder)
        with Search(study, storage or default_url(folder.path)) as search:
            with progress:
                worker = Worker(study, folder, run_cell, progress, tracker.record)
                search.run(worker)
            cells = _all_cells(study, search)
            if worker.num_run or not folder.is_reported or _tabled(folder) != [cell.id for cell in cells]:
                _bring_up_to_date(folder, cells, search.importance(), tracker)
        rows = folder.rows()
    ids = {cell.id for cell in cells}
    failed = sum(row["status"] == "failed" for cell, row in rows.items() if cell in ids)
    return Outcome(tuple(cells), worker.num_run, failed, len(rows.keys() - ids))


def _all_cells(study: Study, search: Search) -> list[Cell]:
    """The cells known from the start, then those of sampled points; each once."""
    sampled = search.points() if study.num_sampled else []
    cells = [*study.cells(), *(cell for point in sampled for cell in study.cells_of(point))]
    return list({cell.id: cell for cell in cells}.values())


def _tabled(folder: RunFolder) -> list[str]:
    if not folder.results.exists():
        return []
    return pd.read_parquet(folder.results, columns=["cell"])["cell"].tolist()


def _bring_up_to_date(
    folder: RunFolder, cells: list[Cell], importance: dict[str, Any] | None, tracker: Tracker
) -> None:
    folder.write_if_changed(folder.environment, json.dumps({"command": command(), **describe_environment()}, indent=1))
    if importance is None:
        folder.importance.unlink(missing_ok=True)
    else:
        folder.write_if_changed(folder.importance, json.dumps(importance, indent=1))
    folder.gather([cell.id for cell in cells])
    rows = folder.rows()
    tracker.sync([rows[cell.id] for cell in cells if cell.id in rows], [folder.study, folder.results])
