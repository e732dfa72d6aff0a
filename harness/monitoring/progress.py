"""Progress of a run: live bars on a terminal, one line per event elsewhere."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from harness.results.labels import point_label
from harness.results.metrics import ANSWER_METRICS, METRICS
from harness.results.run_folder import Row, in_short
from harness.study.study import Cell

QUIET_SECONDS = 30.0
"""Shortest time between two lines about the steps of a cell, outside a terminal."""


def done(point: Mapping[str, float]) -> int:
    """The steps that a cell has run, with those of branches for budgets before the last."""
    return int(point.get("done", point["step"]))


class Progress(ABC):
    """Shows the cells of a run; a context manager for the whole run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Restores the terminal."""
        return

    @abstractmethod
    def started(self, cell: Cell, index: int, total: int) -> None:
        """Cell `index` of `total` starts; `index` is counted from 1."""

    @abstractmethod
    def step(self, point: Mapping[str, float], total: int) -> None:
        """The running cell has reached this point of its training curve; it has `total` steps, with branches."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Shows what the running cell is doing, outside its training steps."""

    @abstractmethod
    def finished(self, row: Row) -> None:
        """The running cell ended; `row` is its result."""


class SilentProgress(Progress):
    """Shows nothing; for a worker whose parent process shows the progress."""

    def started(self, cell: Cell, index: int, total: int) -> None:
        """Shows nothing."""

    def step(self, point: Mapping[str, float], total: int) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Shows nothing."""

    def finished(self, row: Row) -> None:
        """Shows nothing."""


class LineProgress(Progress):
    """One line when a cell starts, one when it ends, and one at most every `QUIET_SECONDS` in between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.name = ""
        self.last = time.perf_counter()

    def started(self, cell: Cell, index: int, total: int) -> None:
        """Prints `[3/15] sspe (blocks=3) seed 0: started`."""
        self.name = f"[{index}/{total}] {title(cell)}"
        self._print("started")

    def step(self, point: Mapping[str, float], total: int) -> None:
        """Prints step and loss, at most every `QUIET_SECONDS`."""
        if time.perf_counter() - self.last >= QUIET_SECONDS:
            self._print(f"step {done(point)}/{total}, loss {point['loss']:.3f}")

    def note(self, text: str) -> None:
        """Prints the text, at most every `QUIET_SECONDS`."""
        if time.perf_counter() - self.last >= QUIET_SECONDS:
            self._print(text)

    def finished(self, row: Row) -> None:
        """Prints the result."""
        self._print(summary(row))
        self.name = ""

    def _print(self, text: str) -> None:
        self.last = time.perf_counter()
        line = f"{self.name}: {text}" if self.name else text
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveProgress(Progress):
    """A bar for the cells and one for the steps of the running cell; one line per finished cell above the bars."""

    def __init__(self, console: Console) -> None:
        self.bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self.cells: TaskID | None = None
        self.steps: TaskID | None = None
        self.name = ""

    def started(self, cell: Cell, index: int, total: int) -> None:
        """Adds a bar for the steps of the cell."""
        self.bars.start()
        self.name = title(cell)
        if self.cells is None:
            self.cells = self.bars.add_task("cells", total=total, note="")
        self.bars.update(self.cells, completed=index - 1, total=total)
        self.steps = self.bars.add_task(self.name, total=None, note="preparing")

    def step(self, point: Mapping[str, float], total: int) -> None:
        """Advances the bar and shows the loss."""
        if self.steps is not None:
            self.bars.update(self.steps, completed=done(point), total=total, note=f"loss {point['loss']:.3f}")

    def note(self, text: str) -> None:
        """Shows the text next to the bar."""
        if self.steps is not None:
            self.bars.update(self.steps, note=text)

    def finished(self, row: Row) -> None:
        """Prints the result above the bars and removes the bar of the steps."""
        self.bars.console.print(f"{self.name}: {summary(row)}", markup=False, highlight=False)
        if self.steps is not None:
            self.bars.remove_task(self.steps)
        if self.cells is not None:
            self.bars.advance(self.cells)

    def close(self) -> None:
        """Stops updating the bars."""
        self.bars.stop()


def progress_on(console: Console) -> Progress:
    """`LiveProgress` on a terminal, `LineProgress` elsewhere."""
    return LiveProgress(console) if console.is_terminal else LineProgress(console)


def title(cell: Cell) -> str:
    """Arm, point and seed of a cell, as in `sspe (blocks=3) seed 0`."""
    settings = point_label(cell.point)
    return f"{cell.arm} ({settings}) seed {cell.seed}" if settings else f"{cell.arm} seed {cell.seed}"


def summary(row: Row) -> str:
    """The result of a cell in one line."""
    seconds = f"{row.get('wall_seconds') or 0:.0f} s"
    if row["status"] != "done":
        return f"{row['status']} after {seconds}: {in_short(row.get('reason')) or 'no reason recorded'}"
    known = [(METRICS[column], row[column]) for column in SUMMARY if row.get(column) is not None]
    figures = (f"{metric.label} {value:.{metric.decimals}f} {metric.unit}".rstrip() for metric, value in known)
    return ", ".join([*figures, seconds])


SUMMARY = ("giou", *ANSWER_METRICS, "fp_rate", "tokens", "latency_ms")
"""Metrics in the line of a finished cell."""
