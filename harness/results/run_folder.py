"""What is measured of a cell, and where it is kept: one file a cell, gathered into the two tables of a study.

`results.parquet` has a row a cell, `samples.parquet` a row an expression or question. They are the source of truth;
what MLflow, Optuna and reports show is made from them.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from harness.errors import HarnessError
from harness.system.files import replace_file

__all__ = ["ANSWER_METRICS", "COLUMNS", "FAMILIES", "METRICS", "SAMPLE_COLUMNS", "STAGES", "Metric", "Row", "RunFolder"]

Row = dict[str, Any]
"""A row of results.parquet; a column that was not measured is None or left out."""

STAGES = ("trained", "scored", "costed", "illustrated")
"""The stages of a cell, in order; the row of a cell is written after each, with all that is known by then."""

FAMILIES = (
    *("attribute", "texture", "absolute", "relation", "ordinal", "group", "absent"),
    *("single", "multi", "no_target", "short", "long"),
)
"""Kinds of expressions: those of scenes, those of gRefCOCO and its like, those of ReasonSeg."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a measured column is shown and compared.

    Args:
        label: as a table's head says it.
        unit: empty for shares and counts.
        higher_is_better: None where neither end is good by itself.
        decimals: shown in tables.
    """

    label: str
    unit: str = ""
    higher_is_better: bool | None = True
    decimals: int = 3


ANSWER_METRICS = {"accuracy": "accuracy", "vqa_accuracy": "VQA accuracy", "cider": "CIDEr"}
"""How answers in words are scored, and what a table calls it."""


def _metrics() -> dict[str, Metric]:
    stages = ("vision", "sam", "superpixels", "projector", "llm", "mask")
    quality = {
        "giou": Metric("gIoU"),
        "giou_teacher_forced": Metric("gIoU, [SEG] given"),
        "ciou": Metric("cIoU"),
        "fp_rate": Metric("FP rate", higher_is_better=False),
        "fn_rate": Metric("FN rate", higher_is_better=False),
        "wrong_object_rate": Metric("wrong object", higher_is_better=False),
        "no_target_accuracy": Metric("no-target accuracy"),
        "target_accuracy": Metric("target accuracy"),
        **{f"precision_at_{percent}": Metric(f"P@0.{percent // 10}") for percent in (50, 60, 70, 80, 90)},
        "giou_shuffled": Metric("gIoU, expressions shuffled", higher_is_better=None),
        "giou_swapped_tokens": Metric("gIoU, tokens of another image", higher_is_better=None),
        "giou_random_object": Metric("gIoU, random object", higher_is_better=None),
    }
    for scoring, label in ANSWER_METRICS.items():
        quality[scoring] = Metric(label)
        quality[f"{scoring}_shuffled"] = Metric(f"{label}, images shuffled", higher_is_better=None)
    families = {f"giou_{family}": Metric(f"gIoU {family}") for family in FAMILIES}
    families |= {f"fp_rate_{family}": Metric(f"FP rate {family}", higher_is_better=False) for family in FAMILIES}
    cost = {
        "tokens": Metric("visual tokens", "per image", False, 1),
        "tokens_p95": Metric("visual tokens, p95", "per image", False, 1),
        "max_tokens": Metric("visual tokens, at most", "per image", False, 0),
        "projector_parameters": Metric("projector parameters", "", False, 0),
        "trainable_parameters": Metric("trainable parameters", "", False, 0),
        "flops": Metric("FLOPs", "per image", False, 0),
        **{f"flops_{stage}": Metric(f"FLOPs {stage}", "per image", False, 0) for stage in stages},
        "latency_ms": Metric("latency", "ms", False, 1),
        "latency_p90_ms": Metric("latency, p90", "ms", False, 1),
        **{f"latency_{stage}_ms": Metric(f"latency {stage}", "ms", False, 1) for stage in stages},
        "peak_memory_mib": Metric("peak memory", "MiB", False, 0),
        "train_seconds": Metric("training", "s", False, 1),
        "eval_seconds": Metric("evaluation", "s", False, 1),
        "wall_seconds": Metric("cell", "s", False, 1),
    }
    return {**quality, **families, **cost}


METRICS = _metrics()
"""Every number of a row, by column."""

IDENTITY = (
    *("study", "cell", "arm", "point", "seed", "status", "stage", "failed_stage", "reason"),
    *("projector", "superpixels", "vision_encoder"),
)
"""`status` is done, skipped, failed or unfinished; `stage` is the last of `STAGES` that is kept, `failed_stage` the one
that raised."""
PROVENANCE = (
    *("llm", "num_images", "num_expressions", "num_control_images", "latency_runs", "latency_round"),
    *("started_at", "command", "trial", "code"),
)
"""`latency_round` is the same for cells that were timed in turns; `code` holds the fingerprints of the
code that trained and of that which scored."""
DOCUMENTS = ("spec", "weights", "environment", "curve")
COLUMNS = (*IDENTITY, *PROVENANCE, *METRICS, *DOCUMENTS)
"""Order of the columns of results.parquet; what a cell adds beyond them comes last."""

SAMPLE_COLUMNS = (
    *("cell", "arm", "seed", "image_id", "expression_id", "text", "family", "domain", "split"),
    *("iou", "iou_teacher_forced", "intersection", "union", "predicted_area", "target_area", "predicted_seg"),
    *("intersection_teacher_forced", "predicted_area_teacher_forced"),
    *("elongation", "occlusion", "height", "width", "prediction_rle", "target_rle"),
    *("scoring", "score", "generated_text", "references"),
)


def aggregate_seeds(cells: pd.DataFrame) -> dict[str, float]:
    """Means over the finished cells of one variant of all that was measured."""
    values = cells[[metric for metric in METRICS if metric in cells]].astype(float)
    return values.mean().to_dict()


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
