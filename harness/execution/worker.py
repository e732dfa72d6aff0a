"""Runs the unfinished cells of a study one after the other."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from harness.errors import StudyError
from harness.monitoring.progress import Progress
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell, Point, Study
from harness.system.environment import command

_log = logging.getLogger(__name__)


class RunsCells(Protocol):
    """Checks, runs and times cells: `harness.execution.cells.Cells`, or a substitute in a test."""

    def check(self, cells: Sequence[Cell], log: Callable[[str], None]) -> None:
        """Runs each configuration of these cells once on a few images; raises a HarnessError if any fails."""

    def run(self, cell: Cell, folder: RunFolder, progress: Progress) -> Row:
        """Trains and scores a cell; writes its row and samples, or its row with the reason of the failure."""

    def time(self, cells: Sequence[Cell], folder: RunFolder, progress: Progress) -> bool:
        """Times the finished cells in turns, unless that was done before; returns whether rows were changed."""


class Worker:
    """Runs the points of a search and returns their rows.

    Args:
        after_cell: called after each cell that this worker ran.
    """

    def __init__(
        self,
        study: Study,
        folder: RunFolder,
        cells: RunsCells,
        progress: Progress,
        after_cell: Callable[[], None] = lambda: None,
    ) -> None:
        self.study = study
        self.folder = folder
        self.cells = cells
        self.progress = progress
        self.after_cell = after_cell
        self.finished = folder.finished()
        self.total = len(study.cells()) + study.num_sampled * len(study.settings.seeds)
        self.num_finished = sum(cell.id in self.finished for cell in study.cells())
        self.num_run = 0
        self.has_timed = False

    def seed_by_seed(self, points: Mapping[int, Point]) -> None:
        """Runs the cells of all points, the first seed of every point before any second seed, then times them in turns.

        Args:
            points: by number of their trials.
        """
        planned = []
        for trial, point in points.items():
            with suppress(StudyError):  # reported when the point is evaluated
                planned.append([(cell, trial) for cell in self.study.cells_of(point)])
        for of_one_seed in zip(*planned, strict=True):
            for cell, trial in of_one_seed:
                self._row(cell, trial)
        self.time(self.study.cells())

    def time(self, cells: Sequence[Cell]) -> None:
        """Times the finished cells in turns, and loads their rows again."""
        if self.cells.time(cells, self.folder, self.progress):
            self.has_timed = True
            self.finished |= {cell.id: self.folder.row(cell.id) for cell in cells if cell.id in self.finished}

    def evaluate(self, point: Point, trial: int) -> list[Row]:
        """The rows of a point, one per seed; runs its unfinished cells.

        Raises:
            StudyError: the values of the point are invalid together.
        """
        return [self._row(cell, trial) for cell in self.study.cells_of(point)]

    def _row(self, cell: Cell, trial: int) -> Row:
        if cell.id in self.finished:
            return self.finished[cell.id]
        self.num_run += 1
        self.progress.started(cell, self.num_finished + self.num_run, self.total)
        of_cell = {"cell": cell.id, "arm": cell.arm, "point": dict(cell.point), "seed": cell.seed}
        _log.info("cell started", extra={"fields": of_cell})
        row = {**self.cells.run(cell, self.folder, self.progress), "command": command(), "trial": trial}
        self.folder.write_cell(row)
        row = self.folder.row(cell.id)
        self.finished[cell.id] = row
        self.progress.finished(row)
        outcome = {name: row.get(name) for name in ("status", "stage", "failed_stage", "reason", "wall_seconds")}
        _log.info("cell finished", extra={"fields": of_cell | outcome})
        self.after_cell()
        return row
