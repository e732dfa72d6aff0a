"""A study of three arms and cells that take no time, for tests that need no training.

As a command, `python -m tests.small_study STUDY OUT SECONDS` runs a study whose cells only sleep.
"""

import json
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import pandas as pd
from mlflow import MlflowClient
from rich.console import Console

from harness.execution.run_study import execute
from harness.monitoring.progress import LineProgress, Progress
from harness.monitoring.tracker import tracking_uri
from harness.results.columns import SAMPLE_COLUMNS
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell, Study

PRESET = """\
base:
  data: {name: scenes, train_images: 4, test_images: 2}
  vision_encoder: {name: dinov2-small}
  llm: {name: tiny, width: 32, layers: 1, heads: 2}
  training: {steps: 10}
"""
STUDY = """\
question: Which one is best?
extends: presets/small.yaml
base:
  superpixels: {name: grid, count: 9}
  projector: {name: svp, position: {name: sspe, blocks: 3, queries: 4}}
arms:
  pooling: {projector: {name: pooling, tokens: 4}}
  bbox_mlp: {projector: {position: bbox_mlp}}
  sspe: {}
search:
  arms: [sspe]
  space: {projector.position.blocks: [1, 3], projector.position.queries: [1, 2]}
seeds: [0, 1]
objectives: {giou: maximize, tokens: minimize}
baseline: pooling
"""
CURVE = [{"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.0}]
TPE = """\
search:
  arms: [sspe, bbox_mlp]
  sampler: tpe
  trials: 4
  space: {training.learning_rate: {low: 1e-4, high: 1e-2, log: true}, training.steps: {low: 10, high: 30, step: 10}}
"""


def write_study(folder: Path, text: str = STUDY, preset: str = PRESET) -> Path:
    """A study with its preset, as files."""
    (folder / "presets").mkdir(parents=True, exist_ok=True)
    (folder / "presets" / "small.yaml").write_text(preset)
    path = folder / "small.yaml"
    path.write_text(text)
    return path


@cache
def _mlflow_store() -> bytes:
    """A new MLflow store, copied from one that is created once, because creating one takes seconds."""
    with TemporaryDirectory() as folder:
        MlflowClient(tracking_uri(Path(folder)))
        return (Path(folder) / "mlflow.db").read_bytes()


def run_folder(folder: Path) -> RunFolder:
    """A run folder that contains only an empty MLflow store."""
    run = RunFolder(folder / "run")
    run.path.mkdir()
    (run.path / "mlflow.db").write_bytes(_mlflow_store())
    return run


def sampled_study(folder: Path) -> Study:
    """The same study with a sampled search."""
    start, end = STUDY.index("search:"), STUDY.index("seeds:")
    return Study.from_yaml(write_study(folder, STUDY[:start] + TPE + STUDY[end:]))


def score(cell: Cell) -> float:
    """A score that depends only on the cell and increases with each searched number."""
    return (sum(cell.point.values()) + len(cell.arm) / 10 + cell.seed / 100) / 100


def row_of(cell: Cell, status: str = "done", reason: str = "") -> Row:
    """The row of a cell."""
    measured = {"giou": score(cell), "tokens": 4.0 + len(cell.arm), "wall_seconds": 5.0}
    return {
        **cell.columns,
        "status": status,
        "reason": reason,
        "started_at": "2026-01-01T00:00:00+00:00",
        "environment": json.dumps({"cpu": "one", "device": "cpu"}),
        **({**measured, "curve": json.dumps(CURVE)} if status == "done" else {}),
    }


def samples_of(cell: Cell) -> pd.DataFrame:
    """Two scored expressions."""
    keys = {"cell": cell.id, "arm": cell.arm, "seed": cell.seed}
    return pd.DataFrame([{**dict.fromkeys(SAMPLE_COLUMNS), **keys, "expression_id": i, "iou": 0.5} for i in range(2)])


class Cells:
    """Runs cells without training and records their ids.

    Args:
        fails: arms whose cells fail.
        skips: arms whose cells are skipped.
        seconds: that a cell sleeps.
        log: a file that gets a line for each cell that starts.
    """

    def __init__(
        self, fails: tuple[str, ...] = (), skips: tuple[str, ...] = (), seconds: float = 0, log: Path | None = None
    ) -> None:
        self.fails, self.skips, self.seconds, self.log = fails, skips, seconds, log
        self.ran: list[str] = []

    def check(self, *_: object) -> None:
        """Every configuration passes."""

    def time(self, *_: object) -> bool:
        """There are no models to time."""
        return False

    def run(self, cell: Cell, folder: RunFolder, progress: Progress) -> Row:
        """One cell."""
        self.ran.append(cell.id)
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{cell.id}\n")
        time.sleep(self.seconds)
        for point in CURVE:
            progress.step(point, 10)
        if cell.arm in self.fails + self.skips:
            row = row_of(cell, "failed" if cell.arm in self.fails else "skipped", "as the test asks")
            folder.write_cell(row)
            return row
        row = row_of(cell)
        folder.write_cell(row, samples_of(cell))
        return row


class NoReports:
    """Replaces `ReportProcess`: rows of these cells lack columns that a report requires."""

    def __init__(self, *_: object) -> None:
        """Ignores its arguments."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for nothing."""

    def start(self, *_: object) -> None:
        """Builds nothing."""


def quiet() -> Progress:
    """A progress that prints nothing."""
    return LineProgress(Console(quiet=True))


if __name__ == "__main__":
    path, out, seconds = sys.argv[1:]
    cells = Cells(seconds=float(seconds), log=Path(out) / "started.log")
    execute(Study.from_yaml(Path(path)), RunFolder(Path(out)), None, cells, LineProgress(Console()))
