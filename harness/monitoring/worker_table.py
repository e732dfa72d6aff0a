"""Progress of several workers: one live table on a terminal, lines elsewhere.

A line is printed for each cell that starts or ends, and one per running cell after a minute without any.
"""

import time
from collections.abc import Iterable, Mapping
from statistics import fmean
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from harness.monitoring.progress import summary
from harness.results.run_folder import Row
from harness.system.lease import Owner, Status
from harness.system.time_left import clock_time

QUIET_SECONDS = 60.0
"""Time without a line after which one is printed for each running cell, outside a terminal."""


class WorkerTable:
    """Shows leases and new rows; a context manager that leaves the terminal as it was.

    Args:
        total: cells of the study.
        finished: rows that are there before the run.
    """

    def __init__(self, console: Console, total: int, finished: Mapping[str, Row]) -> None:
        self.console = console
        self.total = total
        self._finished = dict(finished)
        self._seconds: list[float] = []
        self._titles: dict[str, str] = {}
        self._last = time.monotonic()
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, leases: Iterable[tuple[Owner, Status]], rows: Mapping[str, Row]) -> None:
        """Show the running cells, and report rows that are new.

        Args:
            rows: of finished cells.
        """
        running = list(leases)
        for owner, status in running:
            if self._live is None and status.cell not in self._titles:
                self._print(f"{status.title}: started by {owner.host}:{owner.pid}")
            self._titles[status.cell] = status.title
        for cell, row in rows.items():
            if cell not in self._finished:
                self._finished[cell] = row
                self._seconds.append(float(row.get("wall_seconds") or 0.0))
                title = self._titles.get(cell, f"{row['arm']} seed {row['seed']}")
                self._print(f"[{len(self._finished)}/{self.total}] {title}: {summary(row)}")
        if self._live is not None:
            self._live.update(self._table(running))
        elif time.monotonic() - self._last >= QUIET_SECONDS:
            for _, status in running:
                self._print(f"{status.title}: {_stage(status)}")

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self, running: list[tuple[Owner, Status]]) -> Table:
        title = f"{len(self._finished)} of {self.total} cells{self._time_left(len(running))}"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in ("worker", "cell", "stage"):
            table.add_column(name)
        for name in ("step", "loss", "time"):
            table.add_column(name, justify="right")
        for owner, status in sorted(running, key=lambda each: (each[0].host, each[0].pid)):
            step = f"{status.step}/{status.steps}" if status.steps else ""
            loss = f"{status.loss:.3f}" if status.loss == status.loss else ""  # NaN before the first step
            seconds = clock_time(time.time() - status.started)
            table.add_row(f"{owner.host}:{owner.pid}", status.title, status.note, step, loss, seconds)
        return table

    def _time_left(self, num_workers: int) -> str:
        """An estimate from the mean time of the cells of this run."""
        left = self.total - len(self._finished)
        if not self._seconds or not num_workers or not left:
            return ""
        return f", about {clock_time(left * fmean(self._seconds) / num_workers)} left"


def _stage(status: Status) -> str:
    """What a cell is doing, as in `training, step 500/2000, loss 2.310`."""
    steps = f", step {status.step}/{status.steps}, loss {status.loss:.3f}" if status.note == "training" else ""
    return f"{status.note or 'preparing'}{steps}"
