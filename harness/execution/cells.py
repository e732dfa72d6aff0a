"""What a worker calls to check, run and time cells. torch is imported when the first cell runs."""

from collections.abc import Callable, Sequence

from harness.monitoring.progress import Progress
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell


class Cells:
    """Checks, runs and times cells on this machine's device."""

    def check(self, cells: Sequence[Cell], log: Callable[[str], None]) -> None:
        """Refer to `harness.execution.preflight.preflight`.

        Raises:
            HarnessError: a configuration fails.
        """
        from harness.execution.preflight import preflight, refuse_failures

        refuse_failures(preflight(cells, log))

    def run(self, cell: Cell, folder: RunFolder, progress: Progress) -> Row:
        """Refer to `harness.execution.cell.run_cell`."""
        from harness.execution.cell import run_cell

        return run_cell(cell, folder, progress)

    def time(self, cells: Sequence[Cell], folder: RunFolder, progress: Progress) -> bool:
        """Times these cells unless all of them were timed in one round; refer to `harness.execution.timing`."""
        waiting = folder.untimed(cell.id for cell in cells)
        if not waiting:
            return False
        from harness.execution.timing import time_cells

        time_cells([cell for cell in cells if cell.id in waiting], folder, progress)
        return True
