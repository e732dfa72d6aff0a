"""The files of a run: one row per cell, gathered into the tables of a study.

`results.parquet` has one row per cell, `samples.parquet` one row per expression or question. They are the source of
truth for MLflow, Optuna and reports. `budgets.parquet` has one row per cell and budget, and `early_samples.parquet` the
samples of budgets before the last.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from harness.errors import HarnessError
from harness.results.columns import BUDGET_COLUMNS, COLUMNS
from harness.results.metrics import METRICS, SCORES
from harness.results.row_files import Row, RowFiles
from harness.results.sample_files import write_together
from harness.system.files import replace_file

__all__ = ["STAGES", "Row", "RunFolder", "in_short", "round_name"]
STAGES = ("trained", "scored", "costed", "illustrated")
"""The stages of a cell, in order; the row of a cell is written after each stage."""


def round_name(cells: Iterable[str]) -> str:
    """The name of a round in which these cells are timed in turns; equal for equal cells."""
    return hashlib.sha256(" ".join(sorted(cells)).encode()).hexdigest()[:8]


class RunFolder:
    """The folder of one study's results. Files are moved into place after they are written, so none is partial."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells = path / "cells"
        self._rows = RowFiles(self.cells)
        self.gallery = path / "gallery"
        self.results = path / "results.parquet"
        self.samples = path / "samples.parquet"
        self.budgets = path / "budgets.parquet"
        self.early_samples = path / "early_samples.parquet"
        self.study = path / "study.resolved.yaml"
        self.environment = path / "environment.json"
        self.importance = path / "importance.json"
        self.report = path / "report" / "index.html"

    def checkpoint(self, cell: str) -> Path:
        """The checkpoint of a trained cell."""
        return self.cells / f"{cell}.safetensors"

    def training_checkpoint(self, cell: str) -> Path:
        """The checkpoint from which an interrupted training continues."""
        return self.cells / f"{cell}.training.pt"

    def cell_samples(self, cell: str) -> Path:
        """The samples of a cell."""
        return self.cells / f"{cell}.samples.parquet"

    def cell_early_samples(self, cell: str) -> Path:
        """The samples of a cell at the budgets before the last."""
        return self.cells / f"{cell}.early_samples.parquet"

    def budget_checkpoint(self, cell: str, steps: int) -> Path:
        """The checkpoint of a cell at a budget before the last; removed when the cell is done."""
        return self.cells / f"{cell}.{steps}-steps.safetensors"

    def lease(self, cell: str) -> Path:
        """The file that the worker which runs a cell renews."""
        return self.cells / f"{cell}.lease"

    def leases(self) -> list[Path]:
        """The files of all leases."""
        return sorted(self.cells.glob("*.lease"))

    def write_cell(
        self, row: Row, samples: pd.DataFrame | None = None, early_samples: pd.DataFrame | None = None
    ) -> None:
        """Write the samples and the row of a cell; the row comes last, so that a cell with a row has its samples."""
        if early_samples is not None:
            replace_file(self.cell_early_samples(row["cell"]), lambda path: early_samples.to_parquet(path))
        if samples is not None:
            replace_file(self.cell_samples(row["cell"]), lambda path: samples.to_parquet(path))
        text = json.dumps({key: _plain(value) for key, value in row.items()}, indent=1, allow_nan=False)
        replace_file(self.cells / f"{row['cell']}.json", lambda path: path.write_text(text, encoding="utf-8"))

    def row(self, cell: str) -> Row:
        """Load the row of a cell.

        Raises:
            HarnessError: the file is not the row of a cell.
        """
        return self._rows.row(cell)

    def rows(self) -> dict[str, Row]:
        """Every row by cell, of any status; only changed files are read again. Do not change the rows."""
        return self._rows.rows()

    def finished(self) -> dict[str, Row]:
        """Rows of the cells that are done or skipped and do not run again."""
        return {cell: row for cell, row in self.rows().items() if row["status"] in {"done", "skipped"}}

    def finished_row(self, cell: str) -> Row | None:
        """The row of a cell that need not run again; None if it has to run."""
        if not (self.cells / f"{cell}.json").exists():
            return None
        row = self.row(cell)
        return row if row["status"] in {"done", "skipped"} else None

    def kept_row(self, cell: str) -> Row:
        """The row of an unfinished or failed cell that can continue after its last stage; empty if it cannot."""
        if not (self.cells / f"{cell}.json").exists():
            return {}
        row = self.row(cell)
        is_kept = row.get("stage") in STAGES and self.checkpoint(cell).exists()
        return row if is_kept and row["status"] in {"unfinished", "failed"} else {}

    def untimed(self, cells: Iterable[str]) -> list[str]:
        """The cells among these that have a model, if they were not timed in one round; otherwise none."""
        rows = self.finished()
        done = [
            cell for cell in cells if cell in rows and rows[cell]["status"] == "done" and self.checkpoint(cell).exists()
        ]
        name = round_name(done)
        is_timed = all(str(rows[cell].get("latency_round")).partition("/")[0] == name for cell in done)
        return [] if is_timed else done

    def set_aside(self, row: Row) -> None:
        """Move the files of a cell to `cells/superseded`, so that the cell runs again."""
        superseded = self.cells / "superseded"
        superseded.mkdir(exist_ok=True)
        cell, code = row["cell"], row.get("code") or "unknown"
        files = (self.cell_samples(cell), self.cell_early_samples(cell), self.checkpoint(cell), self._rows.path(cell))
        for path in files:
            if path.exists():
                path.replace(superseded / path.name.replace(cell, f"{cell}-{code}", 1))

    def gather(self, cells: Collection[str]) -> pd.DataFrame:
        """Write the tables from these cells, in this order, and return the results."""
        rows = self.rows()
        present = [cell for cell in cells if cell in rows]
        results = _results([rows[cell] for cell in present])
        done = [cell for cell in present if rows[cell]["status"] == "done"]
        for table, path_of in ((self.samples, self.cell_samples), (self.early_samples, self.cell_early_samples)):
            files = [path_of(cell) for cell in done if path_of(cell).exists()]
            replace_file(table, lambda path, files=files: write_together(files, path))  # type: ignore[misc]
        budgets = _budgets([rows[cell] for cell in done])
        replace_file(self.budgets, lambda path: budgets.to_parquet(path))
        replace_file(self.results, lambda path: results.to_parquet(path))
        return results

    def tabled(self) -> list[str]:
        """The cells of results.parquet, in order; none if there is no table."""
        if not self.results.exists():
            return []
        return pd.read_parquet(self.results, columns=["cell"])["cell"].tolist()

    def write_if_changed(self, path: Path, text: str) -> None:
        """Write a text file unless it has this text already, so that its modification time shows a change."""
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))

    def outputs(self) -> list[Path]:
        """The tables, the resolved study, the environment, the importance and the report, if they exist."""
        tables = (self.results, self.samples, self.budgets, self.early_samples)
        files = (*tables, self.study, self.environment, self.importance, self.report.parent)
        return [path for path in files if path.exists()]

    @property
    def is_reported(self) -> bool:
        """Whether the report exists and is newer than its sources."""
        sources = [self.results, self.samples, self.study]
        if not all(path.exists() for path in [*sources, self.report]):
            return False
        return self.report.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in sources)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against other runs; the lock ends with the process.

        Raises:
            HarnessError: another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise HarnessError(
                f"another run is writing {self.path}; wait until it ends, or name another folder with --out"
            ) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def queue_lock(self) -> Iterator[None]:
        """Let one process at a time add cells to the queue; waits for the others."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / ".queue.lock", fallback_to_soft=False):
            yield


def in_short(reason: str | None) -> str:
    """The reason why a cell has no result, in one line: the last line of a traceback, otherwise the whole text."""
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    is_crash = bool(lines) and lines[0].startswith("Traceback")
    return " ".join(lines[-1:] if is_crash else lines)


def _results(rows: list[Row]) -> pd.DataFrame:
    """Rows as a table with all columns; metrics are floats even if no cell has them."""
    extra = sorted({key for row in rows for key in row} - set(COLUMNS))
    table = pd.DataFrame(rows, columns=[*COLUMNS, *extra])
    return table.astype(dict.fromkeys(METRICS, "float64"))


def _budgets(rows: list[Row]) -> pd.DataFrame:
    """One row per cell and budget."""
    found = []
    for row in rows:
        early = json.loads(row.get("early") or "[]")
        found += [{**row, **scores} for scores in [*early, {"budget": 1.0}]]
    return pd.DataFrame(found, columns=list(BUDGET_COLUMNS)).astype(dict.fromkeys(SCORES, "float64"))


def _plain(value: Any) -> Any:
    """A value for JSON: NumPy scalars become Python scalars, and numbers that are not finite None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
