"""What is happening, for whoever watches: live bars on a terminal, a line a cell elsewhere."""

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
"""Outside a terminal, how long a running cell stays silent."""


class Progress(ABC):
    """Told of each cell as it starts, advances and ends; a context manager around them all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        return

    @abstractmethod
    def started(self, cell: Cell, index: int, total: int) -> None:
        """Cell number `index`, counted from 1, of `total` starts."""

    @abstractmethod
    def step(self, point: Mapping[str, float], total: int) -> None:
        """The running cell has reached this point of its training curve, of `total` steps."""

    @abstractmethod
    def note(self, text: str) -> None:
        """What the running cell does besides training."""

    @abstractmethod
    def finished(self, row: Row) -> None:
        """The running cell ended with this row."""


class LineProgress(Progress):
    """A line when a cell starts, one when it ends, and one now and then in between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.name = ""
        self.last = time.perf_counter()

    def started(self, cell: Cell, index: int, total: int) -> None:
        """[3/15] sspe blocks=3 seed 0."""
        self.name = f"[{index}/{total}] {title(cell)}"
        self._say("starts")

    def step(self, point: Mapping[str, float], total: int) -> None:
        """Said at most every `QUIET_SECONDS`."""
        if time.perf_counter() - self.last >= QUIET_SECONDS:
            self._say(f"step {point['step']}/{total}, loss {point['loss']:.3f}")

    def note(self, text: str) -> None:
        """Said at most every `QUIET_SECONDS`."""
        if time.perf_counter() - self.last >= QUIET_SECONDS:
            self._say(text)

    def finished(self, row: Row) -> None:
        """Said always."""
        self._say(summary(row))

    def _say(self, text: str) -> None:
        self.last = time.perf_counter()
        self.console.print(f"{self.name}: {text}", markup=False, highlight=False, soft_wrap=True)


class LiveProgress(Progress):
    """A bar over the cells and one over the steps of the running cell; finished cells scroll away above them."""

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
        """A new bar for its steps."""
        self.bars.start()
        self.name = title(cell)
        if self.cells is None:
            self.cells = self.bars.add_task("cells", total=total, note="")
        self.bars.update(self.cells, completed=index - 1, total=total)
        self.steps = self.bars.add_task(self.name, total=None, note="prepares")

    def step(self, point: Mapping[str, float], total: int) -> None:
        """Moves the bar."""
        if self.steps is not None:
            self.bars.update(self.steps, completed=point["step"], total=total, note=f"loss {point['loss']:.3f}")

    def note(self, text: str) -> None:
        """Beside the bar."""
        if self.steps is not None:
            self.bars.update(self.steps, note=text)

    def finished(self, row: Row) -> None:
        """A line above the bars."""
        self.bars.console.print(f"{self.name}: {summary(row)}", markup=False, highlight=False)
        if self.steps is not None:
            self.bars.remove_task(self.steps)
        if self.cells is not None:
            self.bars.advance(self.cells)

    def close(self) -> None:
        """Takes the bars down."""
        self.bars.stop()


def progress_on(console: Console) -> Progress:
    """Bars where they can move, lines elsewhere."""
    return LiveProgress(console) if console.is_terminal else LineProgress(console)


def title(cell: Cell) -> str:
    """Arm, point and seed in a few words."""
    settings = point_label(cell.point)
    return f"{cell.arm} ({settings}) seed {cell.seed}" if settings else f"{cell.arm} seed {cell.seed}"


def summary(row: Row) -> str:
    """How a cell ended."""
    seconds = f"{row.get('wall_seconds') or 0:.0f} s"
    if row["status"] != "done":
        return f"{row['status']} after {seconds}: {in_short(row.get('reason')) or 'no reason given'}"
    known = [(METRICS[column], row[column]) for column in SUMMARY if row.get(column) is not None]
    figures = (f"{metric.label} {value:.{metric.decimals}f} {metric.unit}".rstrip() for metric, value in known)
    return ", ".join([*figures, seconds])


SUMMARY = ("giou", *ANSWER_METRICS, "fp_rate", "tokens", "latency_ms")
"""What is said of a finished cell."""
