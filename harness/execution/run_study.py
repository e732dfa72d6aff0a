"""Runs a study in its folder: points, cells, tables and search. Finished cells are not run again."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from submitit import Executor

from harness.errors import HarnessError
from harness.execution.publishing import Publisher
from harness.monitoring.progress import Progress
from harness.monitoring.tracker import TrackedProgress, Tracker
from harness.monitoring.worker_table import WorkerTable
from harness.queue.cell_queue import CellQueue
from harness.queue.storage import default_path, repair
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell, Study
from harness.system.environment import command, describe_environment
from harness.system.lease import Watch, read
from harness.system.shares import Share
from harness.worker.cluster_workers import ClusterWorkers
from harness.worker.limits import DEFAULT_LIMITS, Limits
from harness.worker.local_workers import Job, LocalWorkers
from harness.worker.worker import RunsCells, Worker, release_dead_cells, return_dead_cells

_POLL_S = 0.5
"""Shortest pause between two looks at the workers."""
_MAX_SHARE = 0.1
"""Largest share of the time that is spent on looking, as in a large folder on a network file system."""


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


@dataclass(frozen=True, slots=True)
class Team:
    """Worker processes on this machine.

    Attributes:
        shares: of the machine, one per worker.
        make_cells: makes the object that runs cells in a worker; importable by name.
    """

    shares: Sequence[Share]
    make_cells: Callable[[], RunsCells]
    console: Console

    def workers(self, job: Job) -> LocalWorkers:
        """A context manager that starts and ends them."""
        return LocalWorkers(job, self.shares)


@dataclass(frozen=True, slots=True)
class ClusterTeam:
    """Jobs of a cluster.

    Attributes:
        count: number of jobs; each is a worker.
        executor: submits them.
        make_cells: makes the object that runs cells in a job; importable by name.
    """

    count: int
    executor: Executor
    make_cells: Callable[[], RunsCells]
    console: Console

    def workers(self, job: Job) -> ClusterWorkers:
        """A context manager that submits and cancels them."""
        return ClusterWorkers(job, self.count, self.executor)


def execute(
    study: Study,
    folder: RunFolder,
    storage: str | None,
    cells: RunsCells,
    progress: Progress,
    tracker: Tracker | None = None,
    start_report: Callable[[RunFolder], None] | None = None,
    team: Team | ClusterTeam | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Outcome:
    """Runs the unfinished cells; updates tables and report after each cell and after an interruption.

    Args:
        storage: URL of Optuna's storage; a journal file in the folder if None.
        cells: runs cells in this process, where there is no team, and times them.
        tracker: logs the cells as they run; the caller calls its `sync` after the report is built.
        start_report: starts building a report from the tables, without waiting for it; None for no report.
        team: processes or jobs that run the cells; None to run them in this process.

    Raises:
        HarnessError: another run has locked the folder, or the storage cannot be opened.
    """
    where: str | Path = storage or default_path(folder.path)
    with folder.lock():
        folder.write_if_changed(folder.study, study.resolved())
        if storage is None:
            repair(folder.path)
        with CellQueue(study, where) as queue:
            publisher = Publisher(folder, lambda: _all_cells(study, queue), start_report)
            watched = TrackedProgress(progress, tracker) if tracker else progress
            with folder.queue_lock():
                release_dead_cells(queue, folder)
                queue.fill(folder.finished())
            before = {cell: row.get("started_at") for cell, row in folder.rows().items()}
            try:
                with tracker or nullcontext(), watched:
                    if team is None:
                        Worker(study, folder, cells, queue, watched, limits, publisher.after_cell).run()
                    else:
                        job = Job(study, folder.path, where, limits, team.make_cells)
                        _supervise(job, team, queue, publisher, tracker)
                    known = _all_cells(study, queue)
                    has_timed = cells.time(known, folder, watched)
            except json.JSONDecodeError as error:
                raise HarnessError(
                    f"{where} is damaged ({error}), as after a full disk; run the same command again: the queue is "
                    "filled from the rows, and finished cells are kept"
                ) from None
            except BaseException:
                publisher.write_tables()
                raise
            rows = folder.rows()
            num_run = sum(before.get(cell.id) != rows[cell.id].get("started_at") for cell in known if cell.id in rows)
            tabled = folder.tabled()
            if num_run or has_timed or not folder.is_reported or tabled != [cell.id for cell in known]:
                _update(folder, publisher, queue.importance(rows))
    return _outcome(known, num_run, rows)


def _supervise(
    job: Job, team: Team | ClusterTeam, queue: CellQueue, publisher: Publisher, tracker: Tracker | None
) -> None:
    """Starts workers, and watches them and those of other machines until no cell is left."""
    folder, watch = RunFolder(job.folder), Watch()
    before = folder.rows()
    ids = {cell.id for cell in _all_cells(job.study, queue)}
    finished = {cell: row for cell, row in folder.finished().items() if cell in ids}
    total = job.study.num_cells
    with team.workers(job) as workers, WorkerTable(team.console, total, finished) as table:
        while workers.poll() or queue.running():
            started = time.monotonic()
            return_dead_cells(queue, folder, watch, job.limits.retries)
            leases = [found for cell in queue.running().values() if cell and (found := read(folder.lease(cell)))]
            rows = folder.rows()
            new = {cell: row for cell, row in rows.items() if _is_new(row, before.get(cell))}
            before = rows
            table.update(leases, new)
            pause = max(_POLL_S, (time.monotonic() - started) / _MAX_SHARE)
            if tracker is not None:
                for row in new.values():
                    tracker.record(row)
            if new:
                publisher.after_cell()
            time.sleep(pause)


def _is_new(row: Row, before: Row | None) -> bool:
    """Whether a row has ended and was not the same before."""
    return row is not before and row["status"] != "unfinished" and row != before


def _outcome(cells: list[Cell], num_run: int, rows: Mapping[str, Row]) -> Outcome:
    ids = {cell.id for cell in cells}
    others = [row for cell, row in rows.items() if cell not in ids]
    known = {_configuration(cell.columns) for cell in cells} if others else set()
    superseded = [row for row in others if _configuration(row) in known]
    failed = sum(row["status"] == "failed" for cell, row in rows.items() if cell in ids)
    return Outcome(tuple(cells), num_run, failed, len(superseded), len(others) - len(superseded))


def _configuration(row: Row) -> str:
    """Arm, seed and settings of a row, whatever the order of the settings."""
    return json.dumps([row["arm"], row["seed"], json.loads(row["spec"])], sort_keys=True)


def _all_cells(study: Study, queue: CellQueue) -> list[Cell]:
    """The cells that are known before the run, then those of sampled points; each once."""
    sampled = queue.points() if study.num_sampled else []
    cells = [*study.cells(), *(cell for point in sampled for cell in study.cells_of(point))]
    return list({cell.id: cell for cell in cells}.values())


def known_cells(study: Study, folder: RunFolder, storage: str | None) -> list[Cell]:
    """All cells of a study that are known so far; sampled points come from Optuna's storage, if it exists."""
    if not study.num_sampled or (storage is None and not default_path(folder.path).exists()):
        return study.cells()
    with CellQueue(study, storage or default_path(folder.path)) as queue:
        return _all_cells(study, queue)


def _update(folder: RunFolder, publisher: Publisher, importance: dict[str, Any] | None) -> None:
    folder.write_if_changed(folder.environment, json.dumps({"command": command(), **describe_environment()}, indent=1))
    if importance is None:
        folder.importance.unlink(missing_ok=True)
    else:
        folder.write_if_changed(folder.importance, json.dumps(importance, indent=1))
    publisher.write_tables()
