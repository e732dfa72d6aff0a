"""A worker: claims cells of a study from the queue and runs them, until none is left or running elsewhere."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pandas as pd

from harness.errors import HarnessError
from harness.monitoring.progress import Progress, done, title
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell, Study
from harness.system import environment
from harness.system.lease import Lease, LeaseLostError, Status, Watch
from harness.worker.limits import Limits

if TYPE_CHECKING:
    from harness.queue.cell_queue import CellQueue, Claim

_log = logging.getLogger(__name__)
_IDLE_S = 0.5
"""Pause between two looks at the queue of a worker that has nothing to do."""


class RunsCells(Protocol):
    """Runs cells: `harness.execution.cells.Cells`, or something as small in a test."""

    def check(self, cells: Sequence[Cell], log: Callable[[str], None]) -> None:
        """Run each configuration of these cells once on two images; raises a HarnessError if any fails."""

    def run(self, cell: Cell, folder: RunFolder, progress: Progress) -> Row:
        """Train and score a cell; write its row and samples, or its row with the reason why there are none."""

    def time(self, cells: Sequence[Cell], folder: RunFolder, progress: Progress) -> bool:
        """Time the finished ones of these cells in turns, unless they were; whether rows changed."""


class Worker:
    """Runs cells one after the other.

    Args:
        after_cell: called after each cell that this worker ran.
        command: command line that the rows state; by default that of this process.
    """

    def __init__(
        self,
        study: Study,
        folder: RunFolder,
        cells: RunsCells,
        queue: "CellQueue",
        progress: Progress,
        limits: Limits,
        after_cell: Callable[[], None] = lambda: None,
        command: str | None = None,
    ) -> None:
        self.folder = folder
        self.cells = cells
        self.queue = queue
        self.progress = progress
        self.limits = limits
        self.after_cell = after_cell
        self.command = environment.command() if command is None else command
        self.total = study.num_cells
        self.num_finished = len(folder.finished().keys() & {cell.id for cell in study.cells()})
        self.num_run = 0
        self._watch = Watch()

    def run(self) -> None:
        """Run cells until the queue is empty and no other worker runs one that might come back."""
        while True:
            claim = self.queue.claim()
            if claim is not None:
                self._run(claim)
            elif not self.queue.running():
                return
            else:
                return_dead_cells(self.queue, self.folder, self._watch, self.limits.retries)
                time.sleep(_IDLE_S)

    def _run(self, claim: "Claim") -> None:
        cell, path = claim.cell, self.folder.lease(claim.cell.id)
        finished = self.folder.finished_row(cell.id)
        if finished:
            self.queue.name(claim)
            if cell.id in self.queue.completed():
                self.queue.give_up(claim.trial, "another trial has the result of this cell")
            else:
                self.queue.tell(claim, finished)
        elif not self._watch.has_ended(path):
            self.queue.give_up(claim.trial, "another worker runs this cell")
        else:
            try:
                with Lease(path, Status(cell.id, title(cell), started=time.time())) as lease:
                    if self.queue.name(claim):
                        self.queue.tell(claim, self._row(claim, lease))
            except LeaseLostError:
                _log.warning("cell taken over", extra={"fields": {"cell": cell.id}})
            except BaseException:
                with self.folder.queue_lock():
                    self.queue.release(claim)
                raise

    def _row(self, claim: "Claim", lease: Lease) -> Row:
        cell = claim.cell
        self.num_run += 1
        self.progress.started(cell, self.num_finished + self.num_run, self.total)
        fields = {"cell": cell.id, "arm": cell.arm, "point": dict(cell.point), "seed": cell.seed}
        _log.info("cell started", extra={"fields": fields})
        with time_limit(self.limits.cell_seconds):
            leased = LeasedFolder(self.folder.path, lease)
            row = self.cells.run(cell, leased, LeasedProgress(self.progress, lease))
        leased.write_cell({**row, "command": self.command, "trial": claim.trial})
        row = self.folder.row(cell.id)
        self.progress.finished(row)
        outcome = {name: row.get(name) for name in ("status", "stage", "failed_stage", "reason", "wall_seconds")}
        _log.info("cell finished", extra={"fields": fields | outcome})
        self.after_cell()
        return row


class LeasedFolder(RunFolder):
    """Writes rows and samples only while the lease of their cell is held; raises LeaseLostError once it is lost."""

    def __init__(self, path: Path, lease: Lease) -> None:
        super().__init__(path)
        self.held = lease

    def write_cell(
        self, row: Row, samples: pd.DataFrame | None = None, early_samples: pd.DataFrame | None = None
    ) -> None:
        """Refer to `RunFolder.write_cell`."""
        self.held.check()
        super().write_cell(row, samples, early_samples)


class LeasedProgress(Progress):
    """Passes progress on and keeps the status of the lease; raises LeaseLostError once the lease is lost."""

    def __init__(self, inner: Progress, lease: Lease) -> None:
        self.inner = inner
        self.lease = lease

    def started(self, cell: Cell, index: int, total: int) -> None:
        """Passed on."""
        self.inner.started(cell, index, total)

    def step(self, point: Mapping[str, float], total: int) -> None:
        """Step and loss go into the lease."""
        status = self.lease.status
        status.note, status.step, status.steps, status.loss = "training", done(point), total, point["loss"]
        self.lease.check()
        self.inner.step(point, total)

    def note(self, text: str) -> None:
        """The stage goes into the lease."""
        self.lease.status.note = text
        self.lease.check()
        self.inner.note(text)

    def finished(self, row: Row) -> None:
        """Passed on."""
        self.inner.finished(row)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise a HarnessError in this process's main thread after so many seconds; no limit on Windows."""
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: object) -> None:
        raise HarnessError(f"the cell took more than {seconds / 60:g} minutes; raise the limit with --cell-minutes")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def return_dead_cells(queue: "CellQueue", folder: RunFolder, watch: Watch, retries: int) -> None:
    """Enqueue the cells of dead workers again; a cell in which too many workers died is recorded as failed."""
    with folder.queue_lock():
        for number, cell in queue.running().items():
            if not _is_dead(queue, folder, watch, number, cell):
                continue
            _log.warning("worker died", extra={"fields": {"cell": cell, "trial": number}})
            attempts = queue.num_deaths(number) + 1
            if attempts <= retries:
                # Its worker may only have been slow, and stops when it sees that its lease is gone.
                folder.lease(cell).unlink(missing_ok=True)
                queue.return_dead(number)
                continue
            reason = (
                f"{attempts} workers died while they ran this cell: killed, or out of memory; look for the cause in "
                "the log of the system, then run the study again"
            )
            failed = queue.cell_of(number)
            folder.write_cell({**failed.columns, **folder.kept_row(failed.id), "status": "failed", "reason": reason})
            queue.give_up(number, reason)


def release_dead_cells(queue: "CellQueue", folder: RunFolder) -> None:
    """Enqueue the cells of workers that died before this run, which counts deaths anew."""
    watch = Watch()
    for number, cell in queue.running().items():
        if _is_dead(queue, folder, watch, number, cell):
            folder.lease(cell).unlink(missing_ok=True)
            queue.release_dead(number)


def _is_dead(queue: "CellQueue", folder: RunFolder, watch: Watch, number: int, cell: str) -> bool:
    """Whether no worker runs the cell of this trial any more.

    A worker that waits for the storage may hold the lease for long before it can name its cell.
    """
    if not cell and not queue.is_unnamed_for_long(number):
        return False
    cell = cell or queue.cell_id_of(number)
    return not cell or watch.has_ended(folder.lease(cell))
