"""What a worker does with real cells; imports torch only when the first one runs."""

from collections.abc import Callable, Sequence

from harness.progress import Progress
from harness.records import Row, RunFolder
from harness.study import Cell


class Cells:
    """Runs and times cells on this machine's device."""

    def check(self, cells: Sequence[Cell], say: Callable[[str], None]) -> None:
        """See `harness.preflight.preflight`.

        Raises:
            HarnessError: a configuration fails.
        """
        from harness.preflight import preflight, refuse_failures

        refuse_failures(preflight(cells, say))

    def run(self, cell: Cell, folder: RunFolder, progress: Progress) -> Row:
        """See `harness.cell.run_cell`."""
        from harness.cell import run_cell

        return run_cell(cell, folder, progress)

    def time(self, cells: Sequence[Cell], folder: RunFolder, progress: Progress) -> bool:
        """See `harness.timing.time_cells`; cells that were all timed in one round are left alone."""
        waiting = folder.untimed(cell.id for cell in cells)
        if not waiting:
            return False
        from harness.timing import time_cells

        time_cells([cell for cell in cells if cell.id in waiting], folder, progress)
        return True
