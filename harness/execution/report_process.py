"""Builds a run's report in a separate process, so that it neither delays nor interrupts the study."""

import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.results.run_folder import RunFolder

_MAX_SHARE = 0.1
"""Largest share of a run's time during which a report is built."""


class ReportProcess:
    """Builds one report at a time; a context manager that waits for the last one.

    Args:
        build: writes the report of a run folder; must be importable by name.
    """

    def __init__(self, build: Callable[[Path], object]) -> None:
        self.build = build
        self._process: BaseProcess | None = None
        self._started = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.join()

    def start(self, folder: RunFolder) -> None:
        """Starts a report, unless one is being built or another one would exceed `_MAX_SHARE`."""
        if self._process is not None and (self._process.is_alive() or self._is_recent(folder)):
            return
        self._started = time.time()
        self._process = get_context("spawn").Process(target=_build, args=(self.build, folder.path), daemon=True)
        self._process.start()

    def _is_recent(self, folder: RunFolder) -> bool:
        if not folder.report.exists():
            return False
        seconds = folder.report.stat().st_mtime - self._started
        return time.time() - self._started < seconds / _MAX_SHARE


def _build(build: Callable[[Path], object], path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run handles Ctrl-C and waits for this process
    build(path)
