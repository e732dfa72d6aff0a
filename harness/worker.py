"""Runs the cells of a study, one after the other, until none is left; never one that is finished."""

from collections.abc import Callable, Mapping
from contextlib import suppress

from harness.environment import command
from harness.errors import StudyError
from harness.progress import Progress
from harness.records import Row, RunFolder
from harness.study import Cell, Point, Study

RunCell = Callable[[Cell, RunFolder, Progress], Row]
"""Trains and scores a cell; writes its row and samples, or its row with the reason why there are none."""
OnRow = Callable[[Row], None]


class Worker:
    """Takes points from a search and turns them into rows.

    Args:
        run_cell: `harness.cell.run_cell`, or something as small in a test.
        on_row: told of each row that this worker produced.
    """

    def __init__(self, study: Study, folder: RunFolder, run_cell: RunCell, progress: Progress, on_row: OnRow) -> None:
        self.study = study
        self.folder = folder
        self.run_cell = run_cell
        self.progress = progress
        self.on_row = on_row
        self.finished = folder.finished()
        self.total = len(study.cells()) + study.num_sampled * len(study.settings.seeds)
        self.num_there = sum(cell.id in self.finished for cell in study.cells())
        self.num_run = 0

    def seed_by_seed(self, points: Mapping[int, Point]) -> None:
        """Runs the cells of all these points, by number of their trials, the first seed of each before any second."""
        planned = []
        for trial, point in points.items():
            with suppress(StudyError):  # said when the point's own turn comes
                planned.append([(cell, trial) for cell in self.study.cells_of(point)])
        for of_one_seed in zip(*planned, strict=True):
            for cell, trial in of_one_seed:
                self._row(cell, trial)

    def evaluate(self, point: Point, trial: int) -> list[Row]:
        """The rows of a point, one a seed; runs those cells that are not finished.

        Raises:
            StudyError: the values of the point do not go together.
        """
        return [self._row(cell, trial) for cell in self.study.cells_of(point)]

    def _row(self, cell: Cell, trial: int) -> Row:
        if cell.id in self.finished:
            return self.finished[cell.id]
        self.num_run += 1
        self.progress.started(cell, self.num_there + self.num_run, self.total)
        row = {**self.run_cell(cell, self.folder, self.progress), "command": command(), "trial": trial}
        self.folder.write_cell(row)
        row = self.folder.row(cell.id)
        self.finished[cell.id] = row
        self.progress.finished(row)
        self.on_row(row)
        return row
