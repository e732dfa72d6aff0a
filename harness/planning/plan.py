"""Which cells a study will run, with time estimates from finished cells."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from harness.errors import HarnessError
from harness.results.labels import point_label
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell, Study
from harness.study.training_config import TrainingConfig
from harness.system.environment import accelerator, cpu_model

MAX_SHOWN = 500
"""Largest number of cells in the table; its caption counts all cells."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell of a plan.

    Args:
        status: of its row; "to run" without a row.
        seconds: estimated; 0 if the cell will not run, None if no comparable cell has finished.
        max_tokens: largest number of visual tokens per image; None if the arm has not run.
    """

    cell: Cell
    status: str
    seconds: float | None
    max_tokens: float | None


def make_plan(study: Study, folder: RunFolder) -> list[Planned]:
    """All cells that are known before the study runs."""
    rows = folder.rows()
    past = [row for row in [*rows.values(), *_rows_of_other_studies(folder.path)] if row["status"] == "done"]
    paces = [pace for row in past if (pace := _Pace.of(row)) is not None]
    max_tokens: dict[str, float | None] = {}
    for row in past:
        max_tokens.setdefault(_token_settings(json.loads(row["spec"])), row.get("max_tokens"))
    planned = []
    for point in study.points():
        cells = study.cells_of(point)
        seconds = estimate(cells[0], paces)
        tokens = max_tokens.get(_token_settings(cells[0].spec.model_dump(mode="json")))
        for cell in cells:
            status = rows[cell.id]["status"] if cell.id in rows else "to run"
            planned.append(Planned(cell, status, 0.0 if status in {"done", "skipped"} else seconds, tokens))
    return planned


@dataclass(frozen=True, slots=True)
class _Pace:
    """How fast a cell ran: seconds per training step, including evaluation."""

    kind: tuple[Any, ...]
    projector: dict[str, Any]
    seconds_per_step: float

    @classmethod
    def of(cls, row: Row) -> "_Pace | None":
        """The pace of a finished cell; None if it ran on other hardware."""
        environment = json.loads(row.get("environment") or "{}")
        here = (cpu_model(), accelerator()["device"])
        if (environment.get("cpu"), environment.get("device")) != here or not row.get("wall_seconds"):
            return None
        spec = json.loads(row["spec"])
        return cls(_kind(spec), spec["projector"], row["wall_seconds"] / _steps(spec["training"]))


def _steps(training: dict[str, Any]) -> int:
    """All steps of a training, also of a row without budgets, as earlier versions wrote it."""
    known = {name: training[name] for name in ("steps", "alignment_steps", "budgets") if name in training}
    return TrainingConfig.model_validate({"budgets": (1.0,), **known}).all_steps


def _kind(spec: dict[str, Any]) -> tuple[Any, ...]:
    """Settings that must be equal for steps to be comparable."""
    training = spec["training"]
    parts = (spec["vision_encoder"], spec["llm"], spec["mask_decoder"], training["precision"])
    return (json.dumps(parts, sort_keys=True), training["batch_images"], training["expressions_per_image"])


def estimate(cell: Cell, paces: Iterable[_Pace]) -> float | None:
    """Seconds, from cells with the same projector, else with any projector, and otherwise equal settings; or None."""
    spec = cell.spec.model_dump(mode="json")
    comparable = [pace for pace in paces if pace.kind == _kind(spec)]
    same = [pace for pace in comparable if pace.projector == spec["projector"]]
    chosen = same or comparable
    return median(pace.seconds_per_step for pace in chosen) * _steps(spec["training"]) if chosen else None


def _token_settings(spec: dict[str, Any]) -> str:
    """The settings that determine the number of visual tokens."""
    return json.dumps([spec["projector"], spec["superpixels"], spec["vision_encoder"]], sort_keys=True)


def _rows_of_other_studies(path: Path) -> list[Row]:
    """Rows of the other studies with a run folder in the same parent folder."""
    others = [other for other in sorted(path.parent.glob("*/cells")) if other.parent != path]
    found: list[Row] = []
    for other in others:
        with suppress(HarnessError):  # reported when that study is run
            found += RunFolder(other.parent).rows().values()
    return found


def plan_table(study: Study, plan: list[Planned]) -> Table:
    """The plan as a table, with its total in the caption."""
    table = Table(title=f"{study.name}: {study.settings.question}", caption=_total(study, plan), title_justify="left")
    for column in ("cell", "arm", "point", "seed", "max tokens", "status", "time"):
        table.add_column(column, justify="right" if column in {"seed", "max tokens", "time"} else "left")
    for planned in plan[:MAX_SHOWN]:
        cell = planned.cell
        tokens = "-" if planned.max_tokens is None else f"{planned.max_tokens:.0f}"
        time = "-" if planned.seconds == 0 else duration(planned.seconds)
        state = "failed, will run again" if planned.status == "failed" else planned.status
        table.add_row(cell.id, cell.arm, point_label(cell.point), str(cell.seed), tokens, state, time)
    if len(plan) > MAX_SHOWN:
        table.add_row("...", f"{len(plan) - MAX_SHOWN:,} more cells")
    return table


def _total(study: Study, plan: list[Planned]) -> str:
    left = [planned for planned in plan if planned.status in {"to run", "failed"}]
    sampled = study.num_sampled * len(study.settings.seeds)
    more = f", and {sampled} cells at points to be sampled" if sampled else ""
    known = [planned.seconds for planned in left if planned.seconds is not None]
    if not left:
        return f"nothing to run: all {len(plan)} cells have finished{more}"
    unknown = len(left) - len(known)
    if not known:
        return f"{len(left)} of {len(plan)} cells to run{more}; time unknown, no comparable cell has finished here"
    rest = f", without {unknown} cells whose time is unknown" if unknown else ""
    about = f"about {duration(sum(known))}, estimated from finished cells{rest}"
    return f"{len(left)} of {len(plan)} cells to run{more}; {about}"


def duration(seconds: float | None) -> str:
    """12 s, 3 min, 1.5 h."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
