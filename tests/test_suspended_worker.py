"""A worker that was suspended and lost its cell writes nothing of it, when it is resumed."""

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from harness.monitoring.progress import Progress
from harness.queue.cell_queue import CellQueue
from harness.queue.storage import default_path
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell, Study
from harness.system import lease
from harness.worker.limits import DEFAULT_LIMITS
from harness.worker.local_workers import Job, work
from tests.small_study import Cells, row_of, samples_of, write_study

pytestmark = pytest.mark.slow


class HeldCells(Cells):
    """Cells of which the first one waits for files of these names, and which log who started and who wrote them.

    Args:
        place: for the files and logs.
        waits: one name for each process that runs the first cell, in order.
    """

    def __init__(self, place: Path, waits: tuple[str, ...]) -> None:
        super().__init__()
        self.place, self.waits = place, waits

    def run(self, cell: Cell, folder: RunFolder, progress: Progress) -> Row:  # noqa: ARG002 - a cell that tells nothing
        """Writes the row without a look at the lease, as after the last step of a stage."""
        self._note("started.log", cell)
        started = [line.split()[1] for line in (self.place / "started.log").read_text().splitlines()]
        if cell.id == started[0]:
            wait_until((self.place / self.waits[started.count(cell.id) - 1]).exists)
        row = {**row_of(cell), "status": "unfinished", "stage": "scored"}
        folder.write_cell(row, samples_of(cell))
        self._note("written.log", cell)
        return row_of(cell)

    def _note(self, name: str, cell: Cell) -> None:
        with (self.place / name).open("a") as file:
            file.write(f"{os.getpid()} {cell.id}\n")


def wait_until(is_true) -> None:
    deadline = time.monotonic() + 120
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _work(study: Study, out: Path, make_cells) -> None:
    """A worker with short leases."""
    lease.RENEWED_S, lease.EXPIRES_S = 0.2, 2.0
    sys.exit(work(Job(study, out, default_path(out), DEFAULT_LIMITS, make_cells)))


@pytest.mark.parametrize("is_other_done", [False, True], ids=["while_the_other_runs_it", "after_the_other_has_ended"])
def test_a_cell_of_a_suspended_worker_is_written_once_by_the_worker_that_took_it_over(tmp_path, is_other_done):
    study, folder = Study.from_yaml(write_study(tmp_path), ["seeds=[0]"]), RunFolder(tmp_path / "run")
    with CellQueue(study, default_path(folder.path)) as queue:
        queue.fill({})
    make_cells = partial(HeldCells, tmp_path, ("go", "finish"))
    start = partial(multiprocessing.get_context("spawn").Process, target=_work, args=(study, folder.path, make_cells))
    suspended, other = start(), start()

    def log(name: str) -> list[list[str]]:
        path = tmp_path / name
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    suspended.start()
    wait_until(lambda: log("started.log"))
    [[_, first]] = log("started.log")
    os.kill(suspended.pid, signal.SIGSTOP)
    try:
        if is_other_done:
            (tmp_path / "finish").touch()
        other.start()
        wait_until(lambda: [str(other.pid), first] in log("started.log"))
        if is_other_done:
            other.join(120)
            assert other.exitcode == 0
            kept = folder.row(first)
    finally:
        (tmp_path / "go").touch()
        os.kill(suspended.pid, signal.SIGCONT)
    wait_until(lambda: "cell taken over" in (folder.path / "run.log").read_text())
    (tmp_path / "finish").touch()
    for worker in (suspended, other):
        worker.join(120)
        assert worker.exitcode == 0

    assert [pid for pid, cell in log("started.log") if cell == first] == [str(suspended.pid), str(other.pid)]
    written = log("written.log")
    assert [pid for pid, cell in written if cell == first] == [str(other.pid)]
    planned = [cell.id for cell in study.cells()]
    assert Counter(cell for _, cell in written) == Counter(planned)
    assert folder.row(first)["status"] == "done"
    assert not is_other_done or folder.row(first) == kept
    assert folder.leases() == []
    with CellQueue(study, default_path(folder.path)) as queue:
        assert Counter(queue.completed()) == Counter(planned)
