"""The progress of a run as printed: bars on a terminal, lines in a log file."""

import re
from dataclasses import dataclass
from io import StringIO

import pytest
from rich.console import Console

from harness.monitoring import progress as progress_module
from harness.monitoring import worker_table
from harness.monitoring.progress import LineProgress, LiveProgress, progress_on
from harness.monitoring.worker_table import WorkerTable
from harness.study.study import Study
from harness.system import time_left
from harness.system.lease import Owner, Status
from tests.small_study import row_of, write_study

WIDTH = 100
TRACEBACK = "Traceback (most recent call last):\n  ...\nValueError: no tokens"
DONE = "pooling seed 0: gIoU 0.007, visual tokens 11.0 per image, 5 s"
FAILED = "sspe (blocks=3, queries=2) seed 1: failed after 0 s: ValueError: no tokens"


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 0.0


class Terminal:
    """A console of `WIDTH` columns; `rows` are the rows that a terminal shows after the output so far."""

    def __init__(self, is_terminal: bool) -> None:
        self.output = StringIO()
        self.console = Console(
            file=self.output, width=WIDTH, force_terminal=is_terminal, color_system=None, legacy_windows=False
        )

    @property
    def rows(self) -> list[str]:
        """Applies the control sequences of rich: cursor up, and erase line."""
        rows, at = [""], 0
        for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.output.getvalue()):
            if part == "\n":
                at += 1
                rows += [""] * (at + 1 - len(rows))
            elif part.startswith("\x1b") and part.endswith("A"):
                at -= int(part[2:-1])
            elif part.startswith("\x1b") and part.endswith("K"):
                rows[at] = ""
            elif not part.startswith(("\x1b", "\r")):
                rows[at] = part
        return [re.sub(" +", " ", row).rstrip() for row in rows]


@pytest.fixture
def cells(tmp_path):
    return Study.from_yaml(write_study(tmp_path)).cells()


@pytest.fixture
def live():
    """A terminal and its progress, which is refreshed only by the test, at 0 s on its clock."""
    terminal = Terminal(is_terminal=True)
    progress = progress_on(terminal.console)
    assert isinstance(progress, LiveProgress)
    progress.bars.live.auto_refresh = False
    progress.bars.get_time = lambda: 0.0
    return terminal, progress


def test_bars_of_a_running_cell(live, cells):
    terminal, progress = live
    with progress:
        progress.started(cells[0], 1, 3)
        progress.bars.refresh()
        assert terminal.rows == [
            "cells 0/3 0:00:00 -:--:--",
            "pooling seed 0 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 0/? 0:00:00 preparing",
        ]
        progress.note("patches 3/4")
        progress.bars.refresh()
        assert terminal.rows[1].endswith(" 0/? 0:00:00 patches 3/4")
        progress.step({"step": 5, "loss": 2.0}, 10)
        progress.bars.refresh()
        assert terminal.rows == [
            "cells 0/3 0:00:00 -:--:--",
            "pooling seed 0 ━━━━━━━━━━━━━━━━━━━━ 5/10 0:00:00 -:--:-- loss 2.000",
        ]


def test_finished_cells_are_lines_above_the_bars(live, cells):
    terminal, progress = live
    with progress:
        progress.started(cells[0], 1, 3)
        progress.finished(row_of(cells[0]))
        progress.started(cells[-1], 2, 3)
        progress.bars.refresh()
        assert terminal.rows == [
            DONE,
            "cells ━━━━━━━━━━━━ 1/3 0:00:00 -:--:--",
            "sspe (blocks=3, queries=2) seed 1 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 0/? 0:00:00 preparing",
        ]
        progress.finished(row_of(cells[-1], "failed", TRACEBACK))
    assert terminal.rows == [DONE, FAILED, "cells ━━━━━━━━━━━━━━━━━━━━━━━━━━╸ 2/3 0:00:00 -:--:--", ""]
    assert terminal.output.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize("quiet_seconds", [0.0, 1e9])
def test_a_log_file_has_lines_without_control_sequences(quiet_seconds, cells, monkeypatch):
    monkeypatch.setattr(progress_module, "QUIET_SECONDS", quiet_seconds)
    terminal = Terminal(is_terminal=False)
    progress = progress_on(terminal.console)
    assert isinstance(progress, LineProgress)
    with progress:
        progress.started(cells[0], 1, 3)
        progress.note("patches 3/4")
        progress.step({"step": 5, "loss": 2.0}, 10)
        progress.finished(row_of(cells[0]))
        progress.started(cells[-1], 2, 3)
        progress.finished(row_of(cells[-1], "failed", TRACEBACK))
        progress.started(cells[-1], 3, 3)
        progress.finished(row_of(cells[-1], "skipped", "scale=5 does not divide the 14x14 patch grid"))
        progress.note("timing 2 models in turns")
    first, second = "[1/3] pooling seed 0: ", "[2/3] sspe (blocks=3, queries=2) seed 1: "
    in_between = [f"{first}patches 3/4", f"{first}step 5/10, loss 2.000"] if quiet_seconds == 0.0 else []
    assert terminal.output.getvalue().splitlines() == [
        f"{first}started",
        *in_between,
        f"{first}gIoU 0.007, visual tokens 11.0 per image, 5 s",
        f"{second}started",
        f"{second}failed after 0 s: ValueError: no tokens",
        "[3/3] sspe (blocks=3, queries=2) seed 1: started",
        "[3/3] sspe (blocks=3, queries=2) seed 1: skipped after 0 s: scale=5 does not divide the 14x14 patch grid",
        *(["timing 2 models in turns"] if quiet_seconds == 0.0 else []),
    ]


def test_a_log_file_says_what_each_worker_does_after_a_minute_without_a_line(cells, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(worker_table.time, "monotonic", lambda: clock.now)
    terminal = Terminal(is_terminal=False)
    owner = Owner(machine="here", pid=7, started=1, host="node")
    status = Status(cells[0].id, "pooling seed 0", "patches 3/4")
    with WorkerTable(terminal.console, 2, {}) as table:
        table.update([(owner, status)], {})
        for clock.now in (59.0, 60.0, 61.0, 119.0):
            table.update([(owner, status)], {})
        clock.now = 120.0
        status.note, status.step, status.steps, status.loss = "training", 5, 10, 2.0
        table.update([(owner, status)], {})
        table.update([], {cells[0].id: row_of(cells[0])})
    assert terminal.output.getvalue().splitlines() == [
        "pooling seed 0: started by node:7",
        "pooling seed 0: patches 3/4",
        "pooling seed 0: training, step 5/10, loss 2.000",
        f"[1/2] {DONE}",
    ]


def test_the_time_left_is_that_of_the_mean_rate(monkeypatch):
    clock = Clock(100.0)
    monkeypatch.setattr(time_left.time, "monotonic", lambda: clock.now)
    texts: list[str] = []
    on_progress = time_left.counted("patches", texts.append)
    for clock.now, done in ((105.0, 1), (160.0, 4), (1600.0, 100), (4100.0, 4000)):
        on_progress(done, 4000)
    assert texts == [
        "patches 1/4000",
        "patches 4/4000, about 16:39:00 left",
        "patches 100/4000, about 16:15:00 left",
        "patches 4000/4000",
    ]
    assert (time_left.clock_time(59.6), time_left.clock_time(3599.0)) == ("1:00", "59:59")
