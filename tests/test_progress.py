"""The progress of a run as printed: bars on a terminal, lines in a log file."""

import re
from io import StringIO

import pytest
from rich.console import Console

from harness.monitoring import progress as progress_module
from harness.monitoring.progress import LineProgress, LiveProgress, progress_on
from harness.study.study import Study
from tests.small_study import row_of, write_study

WIDTH = 100
TRACEBACK = "Traceback (most recent call last):\n  ...\nValueError: no tokens"
DONE = "pooling seed 0: gIoU 0.007, visual tokens 11.0 per image, 5 s"
FAILED = "sspe (blocks=3, queries=2) seed 1: failed after 0 s: ValueError: no tokens"


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
