"""Updates tables and report while a study runs."""

import time
from collections.abc import Callable, Sequence

from harness.results.run_folder import RunFolder
from harness.study.study import Cell

_MAX_SHARE = 0.05
"""Largest share of a run's time that is spent on writing tables."""


class Publisher:
    """Writes the tables of a run folder after cells, and starts its report.

    Args:
        cells: returns all cells of the study that are known so far.
        start_report: starts building a report, without waiting for it; None for no report.
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
        """Writes the tables and starts the report, unless that would exceed `_MAX_SHARE`."""
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
