"""Sends a study to MLflow: the training curve while a cell trains, its scores when it ends.

The experiment is named after the study by default. The parent run is the study in one run folder; each child run is a
cell. All of it can be sent again from the run folder, so an unreachable server delays a study only briefly and missing
runs are sent later. Calls are made between training steps and never in another thread, which could disturb a latency
measurement.
"""

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.errors import HarnessError
from harness.monitoring import run_contents
from harness.monitoring.mlflow_store import MlflowStore, is_final
from harness.monitoring.progress import Progress
from harness.monitoring.sent_runs import SentRuns
from harness.monitoring.study_runs import LiveRun, StudyRuns
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell, Study
from harness.system.uris import redact, scheme_of

_log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""Time until the next attempt after a store did not respond."""
MAX_LOST_SECONDS = 5.0
"""Total time that cells wait for a store that does not respond; after that only `sync` tries again."""
SYNC_ATTEMPTS, SYNC_PAUSE_SECONDS = 3, 1.0
_MAX_REASON = 200


def tracking_uri(folder: Path) -> str:
    """URI of the store in a run folder, for `mlflow ui --backend-store-uri`."""
    return f"sqlite:///{(folder / 'mlflow.db').resolve()}"


class Tracker:
    """Sends a study and its cells to one MLflow store; a context manager around the cells.

    Args:
        uri: of the store; the SQLite file in the run folder if None.
    """

    def __init__(self, study: Study, folder: RunFolder, uri: str | None = None) -> None:
        self.study = study
        self.folder = folder
        self.uri = uri or tracking_uri(folder.path)
        self.experiment = study.settings.tracking.experiment or study.name
        self.num_unsent = 0
        self._sent = SentRuns(folder.path / ".mlflow.json", f"{redact(self.uri)} {self.experiment}")
        if scheme_of(self.uri) == "sqlite" and not Path(self.uri.partition(":///")[2]).exists():
            self._sent.forget()
        self._runs: StudyRuns | None = None
        self._live: dict[str, LiveRun] = {}
        self._error: Exception | None = None
        self._retry_at = -math.inf
        self._lost_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Marks the unfinished runs of an interrupted study as killed; the next run of the study resumes them."""
        if kind is None or self._runs is None:
            return
        for run in [*(live.run for live in self._live.values() if live.run), self._runs.parent]:
            self._attempt(lambda runs, run=run: runs.store.close(run, "KILLED"))  # type: ignore[misc]

    def start(self, cell: Cell) -> None:
        """Creates the run of a cell that starts, or resumes the run of an interrupted training.

        Raises:
            HarnessError: at the first cell, if the store rejects the run or is a file that cannot be opened.
        """
        live = self._live[cell.id] = LiveRun(cell)
        is_first = self._runs is None and self._error is None
        if not self._attempt(lambda runs: runs.open(live)) and is_first:
            self._report_first_failure()

    def log_point(self, cell_id: str, point: Mapping[str, float]) -> None:
        """Logs a point of the training curve of a started cell."""
        live = self._live[cell_id]
        live.waiting.append(dict(point))
        self._attempt(lambda runs: runs.log_waiting(live))

    def record(self, row: Row) -> None:
        """Finishes or creates the run of a cell; replaces the run of an earlier version of its row."""
        self._attempt(lambda runs: self._record(runs, row))
        self._live.pop(row["cell"], None)

    def sync(self, rows: Sequence[Row], artifacts: Sequence[Path] = ()) -> None:
        """Sends all missing runs, attaches these files and folders to the study's run, and closes it.

        `num_unsent` is then the number of runs that are still missing, including the study's.
        """
        state = _state(rows, artifacts)
        for attempt in range(SYNC_ATTEMPTS):
            missing = self._missing(rows, state)
            if not self.num_unsent:
                return
            if attempt:
                time.sleep(SYNC_PAUSE_SECONDS)
            self._retry_at, self._lost_seconds = -math.inf, 0.0
            for row in missing:
                self.record(row)
            if self._attempt(lambda runs: runs.close(rows, artifacts)):
                self._sent.add("study", state)
        self._missing(rows, state)

    def link(self) -> str | None:
        """The address of the cells in a server's UI; None if nothing was sent to a server."""
        if self._runs is None or scheme_of(self.uri) not in {"http", "https"}:
            return None
        page = f"#/experiments/{self._runs.store.experiment}/runs?workflowType=machine_learning"
        return f"{redact(self.uri).rstrip('/')}/{page}&viewStateShareKey={run_contents.VIEW}"

    def shortfall(self) -> str | None:
        """A message about the runs that are missing in the store; None if there are none."""
        if not self.num_unsent:
            return None
        runs = "1 run is" if self.num_unsent == 1 else f"{self.num_unsent} runs are"
        where = f"{redact(self.uri)} ({self._reason()})"
        return f"{runs} not yet in MLflow at {where}; run the same command again to send the rest"

    def _missing(self, rows: Sequence[Row], state: str) -> list[Row]:
        """The rows that are missing in the store; updates `num_unsent`."""
        missing = [row for row in rows if not self._sent.has(row["cell"], run_contents.version(row))]
        self.num_unsent = len(missing) + (not self._sent.has("study", state))
        return missing

    def _attempt(self, send: Callable[[StudyRuns], None]) -> bool:
        """Makes calls to the store and returns whether they succeeded; after a failure, pauses further attempts.

        The `except` is broad because clients of databases and artifact stores raise their own errors, and none of them
        may end a study.
        """
        if time.monotonic() < self._retry_at:
            return False
        started = time.monotonic()
        try:
            send(self._connect())
        except Exception as error:
            self._error = error
            if not is_final(error):
                self._lost_seconds += time.monotonic() - started
                pause = RETRY_SECONDS if self._lost_seconds < MAX_LOST_SECONDS else math.inf
                self._retry_at = time.monotonic() + pause
            return False
        return True

    def _reason(self) -> str:
        """The last error in one line, without credentials; only the name of an error with an errno."""
        text = " ".join(redact(str(self._error)).split())
        if named := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
            return named[1]
        return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]} ..."

    def _report_first_failure(self) -> None:
        """Raises if the store cannot be used at all, before anything is trained; warns if it does not respond."""
        assert self._error is not None
        if isinstance(self._error, HarnessError):
            raise self._error
        if is_final(self._error) or scheme_of(self.uri) in {"sqlite", "file"}:
            raise HarnessError(
                f"MLflow cannot use {redact(self.uri)} ({self._reason()}); correct the URI, or the user name and "
                "password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        _log.warning(
            "MLflow at %s does not respond (%s); the study continues and its runs are sent later",
            redact(self.uri),
            self._reason(),
        )

    def _connect(self) -> StudyRuns:
        """Opens the store and the study's run on the first call; returns the runs."""
        if self._runs is None:
            self._sent.save()
            tags, files = run_contents.experiment_tags(self.study), self.folder.path / "mlartifacts"
            store = MlflowStore(self.uri, self.experiment, tags, files)
            self._runs = StudyRuns(store, self.study, self.folder, self._sent.folder_id)
        return self._runs

    def _record(self, runs: StudyRuns, row: Row) -> None:
        runs.record(row, self._live.get(row["cell"]))
        self._sent.add(row["cell"], run_contents.version(row))


class TrackedProgress(Progress):
    """Forwards each call to another progress and to a tracker."""

    def __init__(self, shown: Progress, tracker: Tracker) -> None:
        self.shown = shown
        self.tracker = tracker
        self.cell = ""

    def started(self, cell: Cell, index: int, total: int) -> None:
        """Opens the run of the cell."""
        self.shown.started(cell, index, total)
        self.cell = cell.id
        self.tracker.start(cell)

    def step(self, point: Mapping[str, float], total: int) -> None:
        """Logs the point, unless the steps that it belongs to will be undone."""
        self.shown.step(point, total)
        if "is_branch" not in point:
            self.tracker.log_point(self.cell, {name: value for name, value in point.items() if name != "done"})

    def note(self, text: str) -> None:
        """Forwards the text to the other progress only."""
        self.shown.note(text)

    def finished(self, row: Row) -> None:
        """Finishes the run."""
        self.shown.finished(row)
        self.tracker.record(row)

    def close(self) -> None:
        """Restores the terminal."""
        self.shown.close()


def _state(rows: Sequence[Row], artifacts: Sequence[Path]) -> str:
    """Hash of rows and files."""
    files = [file for path in artifacts for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    content = [sorted((row["cell"], run_contents.version(row)) for row in rows), stats]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
