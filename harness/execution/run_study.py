"""Runs a study in its folder: points, cells, tables and search. Finished cells are not run again."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from harness.execution.publishing import Publisher
from harness.execution.search import Search, default_path, default_url
from harness.execution.worker import RunsCells, Worker
from harness.monitoring.progress import Progress
from harness.monitoring.tracker import TrackedProgress, Tracker
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell, Study
from harness.system.environment import command, describe_environment


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run.

    Args:
        cells: all cells of the study.
        num_run: number of cells that ran this time.
        num_failed: number of cells without a result.
        num_superseded: rows in the folder of the same cells with earlier code of their projector or superpixels.
        num_others: rows in the folder that belong to other versions of the study.
    """

    cells: tuple[Cell, ...]
    num_run: int
    num_failed: int
    num_superseded: int
    num_others: int


def execute(
    study: Study,
    folder: RunFolder,
    storage: str | None,
    cells: RunsCells,
    progress: Progress,
    tracker: Tracker | None = None,
    start_report: Callable[[RunFolder], None] | None = None,
) -> Outcome:
    """Runs the unfinished cells; updates tables and report after each cell and after an interruption.

    Args:
        storage: URL of Optuna's storage; SQLite in the folder if None.
        tracker: logs the cells as they run; the caller calls its `sync` after the report is built.
        start_report: starts building a report from the tables, without waiting for it; None for no report.

    Raises:
        HarnessError: another run has locked the folder, or the storage cannot be opened.
    """
    with folder.lock():
        folder.write_if_changed(folder.study, study.resolved())
        with Search(study, storage or default_url(folder.path)) as search:
            publisher = Publisher(folder, lambda: _all_cells(study, search), start_report)
            watched = TrackedProgress(progress, tracker) if tracker else progress
            with tracker or nullcontext(), watched:
                worker = Worker(study, folder, cells, watched, publisher.after_cell)
                try:
                    search.run(worker)
                    worker.time(_all_cells(study, search))
                except BaseException:
                    publisher.write_tables()
                    raise
            known = _all_cells(study, search)
            if (
                worker.num_run
                or worker.has_timed
                or not folder.is_reported
                or folder.tabled() != [cell.id for cell in known]
            ):
                _update(folder, publisher, search.importance())
        rows = folder.rows()
    return _outcome(known, worker.num_run, rows)


def _outcome(cells: list[Cell], num_run: int, rows: Mapping[str, Row]) -> Outcome:
    ids = {cell.id for cell in cells}
    specs = [(cell.arm, cell.seed, json.loads(cell.spec.model_dump_json())) for cell in cells]
    others = [row for cell, row in rows.items() if cell not in ids]
    superseded = [row for row in others if (row["arm"], row["seed"], json.loads(row["spec"])) in specs]
    failed = sum(row["status"] == "failed" for cell, row in rows.items() if cell in ids)
    return Outcome(tuple(cells), num_run, failed, len(superseded), len(others) - len(superseded))


def _all_cells(study: Study, search: Search) -> list[Cell]:
    """The cells that are known before the run, then those of sampled points; each once."""
    sampled = search.points() if study.num_sampled else []
    cells = [*study.cells(), *(cell for point in sampled for cell in study.cells_of(point))]
    return list({cell.id: cell for cell in cells}.values())


def known_cells(study: Study, folder: RunFolder, storage: str | None) -> list[Cell]:
    """All cells of a study that are known so far; sampled points come from Optuna's storage, if it exists."""
    if not study.num_sampled or (storage is None and not default_path(folder.path).exists()):
        return study.cells()
    with Search(study, storage or default_url(folder.path)) as search:
        return _all_cells(study, search)


def _update(folder: RunFolder, publisher: Publisher, importance: dict[str, Any] | None) -> None:
    folder.write_if_changed(folder.environment, json.dumps({"command": command(), **describe_environment()}, indent=1))
    if importance is None:
        folder.importance.unlink(missing_ok=True)
    else:
        folder.write_if_changed(folder.importance, json.dumps(importance, indent=1))
    publisher.write_tables()
