"""What is measured of a cell, and where it is kept: one file a cell, gathered into the two tables of a study.

`results.parquet` has a row a cell, `samples.parquet` a row an expression or question. They are the source of truth;
what MLflow, Optuna and reports show is made from them.
"""

import fcntl
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import HarnessError
from harness.results.columns import COLUMNS, SAMPLE_COLUMNS
from harness.results.metrics import METRICS
from harness.system.files import replace_file

Row = dict[str, Any]
"""A row of results.parquet; a column that was not measured is None or left out."""

STAGES = ("trained", "scored", "costed", "illustrated")
"""The stages of a cell, in order; the row of a cell is written after each, with all that is known by then."""


def round_name(cells: Iterable[str]) -> str:
    """Names a round in which these cells are timed in turns; the same for the same cells."""
    return hashlib.sha256(" ".join(sorted(cells)).encode()).hexdigest()[:8]


class RunFolder:
    """The folder of one study's results. Whatever is in it is whole: files are moved into place, never grown there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells = path / "cells"
        self.gallery = path / "gallery"
        self.results = path / "results.parquet"
        self.samples = path / "samples.parquet"
        self.study = path / "study.resolved.yaml"
        self.environment = path / "environment.json"
        self.importance = path / "importance.json"
        self.report = path / "report" / "index.html"

    def checkpoint(self, cell: str) -> Path:
        """Where a trained cell is kept."""
        return self.cells / f"{cell}.safetensors"

    def training_checkpoint(self, cell: str) -> Path:
        """Where a training that is under way is kept, so that it goes on after the process has died."""
        return self.cells / f"{cell}.training.pt"

    def write_cell(self, row: Row, samples: pd.DataFrame | None = None) -> None:
        """Keeps what a cell produced; its row comes last, so that a row is a cell that lost nothing."""
        if samples is not None:
            replace_file(self.cells / f"{row['cell']}.samples.parquet", lambda path: samples.to_parquet(path))
        text = json.dumps({key: _plain(value) for key, value in row.items()}, indent=1, allow_nan=False)
        replace_file(self.cells / f"{row['cell']}.json", lambda path: path.write_text(text, encoding="utf-8"))

    def row(self, cell: str) -> Row:
        """The row of a cell, as it was written.

        Raises:
            HarnessError: something else has written there since.
        """
        path = self.cells / f"{cell}.json"
        try:
            row: Row = json.loads(path.read_text(encoding="utf-8"))
            is_whole = {"status", "spec"} <= row.keys()
        except (ValueError, AttributeError):
            is_whole = False
        if not is_whole:
            raise HarnessError(f"{path} is not the row of a cell; delete it, and the study runs that cell again")
        return row

    def rows(self) -> dict[str, Row]:
        """Every row that is there, by cell, whatever its status."""
        return {path.stem: self.row(path.stem) for path in sorted(self.cells.glob("*.json"))}

    def finished(self) -> dict[str, Row]:
        """Rows of the cells that need not run again: done, or skipped for a reason that stays."""
        return {cell: row for cell, row in self.rows().items() if row["status"] in {"done", "skipped"}}

    def kept_row(self, cell: str) -> Row:
        """The row that earlier stages of an unfinished or failed cell left; empty where there is none to go on from."""
        if not (self.cells / f"{cell}.json").exists():
            return {}
        row = self.row(cell)
        is_kept = row.get("stage") in STAGES and self.checkpoint(cell).exists()
        return row if is_kept and row["status"] in {"unfinished", "failed"} else {}

    def untimed(self, cells: Iterable[str]) -> list[str]:
        """Those of these cells that have a model, if they were not all timed in one round; else none."""
        rows = self.finished()
        done = [
            cell for cell in cells if cell in rows and rows[cell]["status"] == "done" and self.checkpoint(cell).exists()
        ]
        name = round_name(done)
        is_timed = all(str(rows[cell].get("latency_round")).partition("/")[0] == name for cell in done)
        return [] if is_timed else done

    def set_aside(self, row: Row) -> None:
        """Moves what a cell left to `cells/superseded`, so that the cell runs again; the row is kept there."""
        place = self.cells / "superseded"
        place.mkdir(exist_ok=True)
        cell, code = row["cell"], row.get("code") or "unknown"
        for path in (self.cells / f"{cell}.samples.parquet", self.checkpoint(cell), self.cells / f"{cell}.json"):
            if path.exists():
                path.replace(place / path.name.replace(cell, f"{cell}-{code}", 1))

    def gather(self, cells: Collection[str]) -> pd.DataFrame:
        """Writes the two tables from these cells, in this order; returns the results."""
        rows = self.rows()
        present = [cell for cell in cells if cell in rows]
        results = _results([rows[cell] for cell in present])
        paths = [self.cells / f"{cell}.samples.parquet" for cell in present if rows[cell]["status"] == "done"]
        tables = [_read_samples(path) for path in paths if path.exists()]
        samples = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(SAMPLE_COLUMNS))
        replace_file(self.samples, lambda path: samples.to_parquet(path))
        replace_file(self.results, lambda path: results.to_parquet(path))
        return results

    def tabled(self) -> list[str]:
        """The cells of results.parquet, in order; none where there is no such table."""
        if not self.results.exists():
            return []
        return pd.read_parquet(self.results, columns=["cell"])["cell"].tolist()

    def write_if_changed(self, path: Path, text: str) -> None:
        """Writes a text file of this folder; one that says the same keeps its time, so that nothing seems stale."""
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))

    def outputs(self) -> list[Path]:
        """The tables, what they were made with, and the report: those that are there."""
        files = (self.results, self.samples, self.study, self.environment, self.importance, self.report.parent)
        return [path for path in files if path.exists()]

    @property
    def is_reported(self) -> bool:
        """Whether the report is there and newer than what it is made from."""
        sources = [self.results, self.samples, self.study]
        if not all(path.exists() for path in [*sources, self.report]):
            return False
        return self.report.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in sources)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second run out of this folder; the lock goes with the process, however that ends.

        Raises:
            HarnessError: another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HarnessError(
                    f"another run is writing {self.path}; wait until it ends, or name another folder with --out"
                ) from None
            yield


def in_short(reason: str | None) -> str:
    """Why a cell has no result, in one line: of a crash the last, which names the error; of what can be mended all."""
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    is_crash = bool(lines) and lines[0].startswith("Traceback")
    return " ".join(lines[-1:] if is_crash else lines)


def _read_samples(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        cell = path.name.partition(".")[0]
        raise HarnessError(
            f"{path} is a truncated or invalid table ({error}); delete it and {cell}.json, and run the study again"
        ) from None


def _results(rows: list[Row]) -> pd.DataFrame:
    """Rows as a table with all columns, numbers as numbers also where every cell lacks them."""
    extra = sorted({key for row in rows for key in row} - set(COLUMNS))
    table = pd.DataFrame(rows, columns=[*COLUMNS, *extra])
    return table.astype(dict.fromkeys(METRICS, "float64"))


def _plain(value: Any) -> Any:
    """A value as JSON has it: NumPy's scalars as Python's, and None for a number that could not be had."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
