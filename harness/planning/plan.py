"""What a study will run and what that will take, judged by cells that ran before; nothing is run, nothing invented."""

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
from harness.system.environment import accelerator, cpu_model

MAX_SHOWN = 500
"""Cells that the table lists; its caption counts them all."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell with what is known of it.

    Args:
        status: of its row; "to run" where it has none.
        seconds: it will take; 0 when it will not run, None when nothing comparable has run.
        max_tokens: visual tokens an image has at most, where the arm ran before.
    """

    cell: Cell
    status: str
    seconds: float | None
    max_tokens: float | None


def make_plan(study: Study, folder: RunFolder) -> list[Planned]:
    """Every cell that is known before the study runs."""
    rows = folder.rows()
    past = [row for row in [*rows.values(), *_rows_beside(folder.path)] if row["status"] == "done"]
    paces = [pace for row in past if (pace := _Pace.of(row)) is not None]
    max_tokens: dict[str, float | None] = {}
    for row in past:
        max_tokens.setdefault(_tokens_by(json.loads(row["spec"])), row.get("max_tokens"))
    planned = []
    for point in study.points():
        cells = study.cells_of(point)
        seconds = estimate(cells[0], paces)
        tokens = max_tokens.get(_tokens_by(cells[0].spec.model_dump(mode="json")))
        for cell in cells:
            status = rows[cell.id]["status"] if cell.id in rows else "to run"
            planned.append(Planned(cell, status, 0.0 if status in {"done", "skipped"} else seconds, tokens))
    return planned


@dataclass(frozen=True, slots=True)
class _Pace:
    """How fast a cell ran: seconds a training step, evaluation included."""

    kind: tuple[Any, ...]
    projector: dict[str, Any]
    seconds_a_step: float

    @classmethod
    def of(cls, row: Row) -> "_Pace | None":
        """The pace of a done cell; None where it ran on other hardware than this."""
        environment = json.loads(row.get("environment") or "{}")
        here = (cpu_model(), accelerator()["device"])
        if (environment.get("cpu"), environment.get("device")) != here or not row.get("wall_seconds"):
            return None
        spec = json.loads(row["spec"])
        return cls(_kind(spec), spec["projector"], row["wall_seconds"] / _steps(spec["training"]))


def _steps(training: dict[str, Any]) -> int:
    return training["steps"] + training["alignment_steps"]


def _kind(spec: dict[str, Any]) -> tuple[Any, ...]:
    """What makes steps comparable."""
    training = spec["training"]
    parts = (spec["vision_encoder"], spec["llm"], spec["mask_decoder"], training["precision"])
    return (json.dumps(parts, sort_keys=True), training["batch_images"], training["expressions_per_image"])


def estimate(cell: Cell, paces: Iterable[_Pace]) -> float | None:
    """Seconds, by cells of the same projector on the same backbone, or of any projector on it; None without any."""
    spec = cell.spec.model_dump(mode="json")
    comparable = [pace for pace in paces if pace.kind == _kind(spec)]
    same = [pace for pace in comparable if pace.projector == spec["projector"]]
    chosen = same or comparable
    return median(pace.seconds_a_step for pace in chosen) * _steps(spec["training"]) if chosen else None


def _tokens_by(spec: dict[str, Any]) -> str:
    """What decides how many visual tokens there are."""
    return json.dumps([spec["projector"], spec["superpixels"], spec["vision_encoder"]], sort_keys=True)


def _rows_beside(path: Path) -> list[Row]:
    """Rows of the other studies that ran in the same place."""
    others = [other for other in sorted(path.parent.glob("*/cells")) if other.parent != path]
    found: list[Row] = []
    for other in others:
        with suppress(HarnessError):  # what is wrong there is that study's to tell
            found += RunFolder(other.parent).rows().values()
    return found


def plan_table(study: Study, plan: list[Planned]) -> Table:
    """The plan as a table, with its sum below."""
    table = Table(title=f"{study.name}: {study.settings.question}", caption=_total(study, plan), title_justify="left")
    for column in ("cell", "arm", "point", "seed", "tokens at most", "state", "time"):
        table.add_column(column, justify="right" if column in {"seed", "tokens at most", "time"} else "left")
    for planned in plan[:MAX_SHOWN]:
        cell = planned.cell
        tokens = "-" if planned.max_tokens is None else f"{planned.max_tokens:.0f}"
        time = "-" if planned.seconds == 0 else duration(planned.seconds)
        state = "failed, runs again" if planned.status == "failed" else planned.status
        table.add_row(cell.id, cell.arm, point_label(cell.point), str(cell.seed), tokens, state, time)
    if len(plan) > MAX_SHOWN:
        table.add_row("...", f"{len(plan) - MAX_SHOWN:,} more cells")
    return table


def _total(study: Study, plan: list[Planned]) -> str:
    left = [planned for planned in plan if planned.status in {"to run", "failed"}]
    sampled = study.num_sampled * len(study.settings.seeds)
    more = f", and {sampled} cells at points that the sampler will choose" if sampled else ""
    known = [planned.seconds for planned in left if planned.seconds is not None]
    if not left:
        return f"nothing to run: all {len(plan)} cells have finished{more}"
    unknown = len(left) - len(known)
    if not known:
        return f"{len(left)} of {len(plan)} cells to run{more}; how long is unknown, none like them has run here"
    rest = f", without {unknown} of which none like them has run here" if unknown else ""
    return f"{len(left)} of {len(plan)} cells to run{more}; about {duration(sum(known))} as such cells took{rest}"


def duration(seconds: float | None) -> str:
    """12 s, 3 min, 1.5 h."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
