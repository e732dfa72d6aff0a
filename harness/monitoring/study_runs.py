"""The runs of one study in an MLflow store: one parent run per run folder, with one child run per cell."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.monitoring import run_contents
from harness.monitoring.mlflow_store import MlflowStore, StoredRun
from harness.monitoring.run_contents import RunContents
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell, Study

LOSS = "training/loss"
_STATUS = {"done": "FINISHED", "skipped": "FINISHED", "failed": "FAILED"}


@dataclass
class LiveRun:
    """The run of a cell that is training.

    Args:
        run: its id; empty until it is created in the store.
        logged: steps of the points that were sent.
        waiting: points that were not sent yet.
    """

    cell: Cell
    run: str = ""
    logged: set[float] = field(default_factory=set)
    waiting: list[dict[str, float]] = field(default_factory=list)


class StudyRuns:
    """Creates and fills the runs. Each call may raise any error of the store's client, and can be repeated.

    Args:
        folder_id: distinguishes the runs of this folder from others in the same experiment.
    """

    def __init__(self, store: MlflowStore, study: Study, folder: RunFolder, folder_id: str) -> None:
        self.store = store
        self.study = study
        self.folder = folder
        self.tags = {"run_folder": folder_id}
        self.parent = self._open_parent()
        runs = store.find({**self.tags, "kind": "cell"})
        self.complete = {run.cell: run for run in runs if run.is_complete}

    def open(self, live: LiveRun) -> None:
        """Creates the run of a cell that is training, or reopens the run of an interrupted training."""
        contents = self._contents(run_contents.of_cell(live.cell))
        run = self._find_incomplete(live.cell.id)
        if run:
            self.store.set_running(run)
            live.logged = {step for step, _ in self.store.history(run, LOSS)}
        else:
            run = self.store.create(contents, self.parent)
        self.store.describe(run, contents)
        live.run = run

    def log_waiting(self, live: LiveRun) -> None:
        """Sends the waiting points; steps that a resumed training repeats are sent once."""
        if not live.run:
            self.open(live)
        points = [point for point in live.waiting if point["step"] not in live.logged]
        self.store.log(live.run, _curve_metrics(points), _now_ms())
        live.logged |= {point["step"] for point in points}
        live.waiting.clear()

    def record(self, row: Row, live: LiveRun | None) -> None:
        """Finishes or creates the run of a cell; replaces the run of an earlier version of its row."""
        known = self.complete.get(row["cell"])
        if known is not None and known.version == run_contents.version(row):
            return
        run = self._fill(row, live.run if live is not None else "")
        if known is not None:
            self.store.delete(known.id)
        self.complete[row["cell"]] = StoredRun(run, row["cell"], run_contents.version(row), is_complete=True)

    def close(self, rows: Sequence[Row], artifacts: Sequence[Path]) -> None:
        """Adds summary and files to the run of the study, and ends it."""
        metrics, description = run_contents.summary(rows, self.study)
        latest = self.store.latest(self.parent)
        changed = [(name, value, 0) for name, value in metrics.items() if latest.get(name) != value]
        self.store.log(self.parent, changed, _now_ms())
        self.store.tag(self.parent, {"mlflow.note.content": description})
        for path in artifacts:
            self.store.attach(self.parent, path)
        self.store.close(self.parent, "FINISHED")

    def _open_parent(self) -> str:
        """The id of the study's run, set to running; the oldest one if processes created several at the same time."""
        wanted = {**self.tags, "kind": "study"}
        contents = run_contents.study_contents(self.study)
        if not self.store.find(wanted):
            created = self.store.create(contents.tagged(self.tags), parent=None)
            if created != self.store.find(wanted)[0].id:
                self.store.delete(created)
        parent = self.store.find(wanted)[0].id
        self.store.describe(parent, contents)
        self.store.set_running(parent)
        return parent

    def _fill(self, row: Row, live_run: str) -> str:
        """Sends a whole row, to the run of its training if its curve agrees with the row; returns the id of the run."""
        contents = self._contents(row)
        curve = {point["step"]: point for point in run_contents.curve(row)}
        run = live_run or self._find_incomplete(row["cell"])
        logged = self.store.history(run, LOSS) if run else []
        if run and not _is_part_of(logged, curve):
            self.store.delete(run)
            run, logged = "", []
        if not run:
            run = self.store.create(contents, self.parent, run_contents.start_ms(row))
        if run != live_run:
            self.store.describe(run, contents)
        steps = {step for step, _ in logged}
        end_ms = run_contents.end_ms(row)
        self.store.log(run, _curve_metrics([point for step, point in curve.items() if step not in steps]), end_ms)
        self.store.log(run, run_contents.results_by_step(row), end_ms)
        checkpoint = self.folder.checkpoint(row["cell"])
        if row["status"] == "done" and checkpoint.exists():
            self.store.attach(run, checkpoint)
        self.store.tag(run, run_contents.cell_tags(row, self.study) | {"complete": "true"})
        self.store.close(run, _STATUS[row["status"]], end_ms)
        return run

    def _contents(self, row: Row) -> RunContents:
        return run_contents.cell_contents(row, self.study).tagged(self.tags)

    def _find_incomplete(self, cell: str) -> str:
        """The id of the cell's unfinished run; empty if there is none."""
        runs = self.store.find({**self.tags, "cell": cell})
        return next((run.id for run in runs if not run.is_complete), "")


def _curve_metrics(points: Sequence[Mapping[str, float]]) -> list[tuple[str, float, int]]:
    return [
        (name, value, int(point["step"]))
        for point in points
        for name, value in run_contents.point_metrics(point).items()
    ]


def _is_part_of(logged: Sequence[tuple[int, float]], curve: Mapping[float, Mapping[str, float]]) -> bool:
    """Whether every logged loss occurs in the curve, at most once."""
    steps = [step for step, _ in logged]
    return len(set(steps)) == len(steps) and all(
        step in curve and math.isclose(value, curve[step]["loss"], rel_tol=1e-9) for step, value in logged
    )


def _now_ms() -> int:
    return int(1000 * time.time())
