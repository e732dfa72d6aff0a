"""Keeps tables and report in step with the cells while a study runs."""

import time
from collections.abc import Callable, Sequence

from harness.results.run_folder import RunFolder
from harness.study.study import Cell

_MAX_SHARE = 0.05
"""Largest share of a run's time that goes into tables; a cell that ends sooner after the last ones gets none."""


class Publisher:
    """Writes a run folder's tables after cells, and has its report built from them.

    Args:
        cells: all cells of the study that are known by now.
        start_report: has a report built, without waiting for it; None for no report.
    """

    def __init__(
        self,
        folder: RunFolder,
        cells: Callable[[], Sequence[Cell]],
        start_report: Callable[[RunFolder], None] | None,
    ) -> None:
        self.folder = folder
        self.cells = cells
        self.start_report = start_report
        self._ended = float("-inf")
        self._seconds = 0.0

    def after_cell(self) -> None:
        """Writes the tables and has the report built, unless that was done so lately that it would slow the run."""
        if time.monotonic() - self._ended < self._seconds / _MAX_SHARE:
            return
        self.write_tables()
        if self.start_report is not None:
            self.start_report(self.folder)

    def write_tables(self) -> list[str]:
        """Writes both tables; returns the ids of the study's cells, in order."""
        started = time.monotonic()
        cells = [cell.id for cell in self.cells()]
        self.folder.gather(cells)
        self._ended = time.monotonic()
        self._seconds = self._ended - started
        return cells
