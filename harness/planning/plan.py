"""Which cells a study will run, with time estimates from finished cells."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
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

MAX_ROWS = 200
"""Largest number of rows of a plan: of cells, else of arms at search points, else of arms."""


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
    history = History(finished_rows(folder))
    planned = []
    for point in study.points():
        cells = study.cells_of(point)
        seconds, tokens = history.seconds(cells[0]), history.max_tokens(cells[0])
        for cell in cells:
            status = rows[cell.id]["status"] if cell.id in rows else "to run"
            planned.append(Planned(cell, status, 0.0 if status in {"done", "skipped"} else seconds, tokens))
    return planned


def finished_rows(folder: RunFolder) -> list[Row]:
    """Rows of finished cells of a study, and of the other studies with a run folder beside it."""
    rows = [*folder.rows().values(), *_rows_of_other_studies(folder.path)]
    return [row for row in rows if row["status"] == "done"]


class History:
    """Finished cells, from which others are estimated.

    Args:
        rows: of finished cells; only those that ran on hardware like this machine's give times.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._tokens: dict[str, float | None] = {}
        paces: dict[str, list[float]] = {}
        here = (cpu_model(), accelerator()["device"])
        for row in rows:
            spec, environment = json.loads(row["spec"]), json.loads(row.get("environment") or "{}")
            self._tokens.setdefault(_token_settings(spec), row.get("max_tokens"))
            if (environment.get("cpu"), environment.get("device")) == here and row.get("wall_seconds"):
                for key in _kinds(spec):
                    paces.setdefault(key, []).append(row["wall_seconds"] / _steps(spec["training"]))
        self._seconds_per_step = {key: median(found) for key, found in paces.items()}

    def max_tokens(self, cell: Cell) -> float | None:
        """The largest number of visual tokens of a cell with equal settings of its tokens; None without such a cell."""
        return self._tokens.get(_token_settings(cell.spec.model_dump(mode="json"))) if self._tokens else None

    def seconds(self, cell: Cell) -> float | None:
        """Seconds, from cells with the same projector, else with any projector, and otherwise equal settings; or None.

        A step of another cell takes the same time, including its share of the evaluation.
        """
        if not self._seconds_per_step:
            return None
        spec = cell.spec.model_dump(mode="json")
        found = [pace for key in _kinds(spec) if (pace := self._seconds_per_step.get(key)) is not None]
        return found[0] * _steps(spec["training"]) if found else None


def _steps(training: dict[str, Any]) -> int:
    """All steps of a training, also of a row without budgets, as earlier versions wrote it."""
    known = {name: training[name] for name in ("steps", "alignment_steps", "budgets") if name in training}
    return TrainingConfig.model_validate({"budgets": (1.0,), **known}).all_steps


def _kinds(spec: dict[str, Any]) -> tuple[str, str]:
    """Settings that must be equal for steps to be comparable: with the projector, and without it."""
    training = spec["training"]
    parts = [spec["vision_encoder"], spec["llm"], spec["mask_decoder"]]
    parts += [training[name] for name in ("precision", "batch_images", "expressions_per_image")]
    kind = json.dumps(parts, sort_keys=True)
    return f"{kind} {json.dumps(spec['projector'], sort_keys=True)}", kind


def kind_of(spec: dict[str, Any]) -> str:
    """Settings of backbone and batches; cells of one kind take comparable steps."""
    return _kinds(spec)[1]


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
    """The plan as a table, with its total in the caption: a row per cell, or per group of cells in a large study."""
    table = Table(title=f"{study.name}: {study.settings.question}", caption=_total(study, plan), title_justify="left")
    if len(plan) <= MAX_ROWS:
        _fill_with_cells(table, plan)
    else:
        _fill_with_groups(table, plan)
    return table


def _fill_with_cells(table: Table, plan: list[Planned]) -> None:
    _add_columns(table, "cell", "arm", "point", "seed", "max tokens", "status", "time")
    for planned in plan:
        cell = planned.cell
        time = "-" if planned.seconds == 0 else duration(planned.seconds)
        state = "failed, will run again" if planned.status == "failed" else planned.status
        tokens = _tokens([planned])
        table.add_row(cell.id, cell.arm, point_label(cell.point), str(cell.seed), tokens, state, time)


def _fill_with_groups(table: Table, plan: list[Planned]) -> None:
    """One row per arm and search point, or per arm if these are too many."""
    groups = _grouped(plan, lambda cell: (cell.arm, point_label(cell.point)))
    if len(groups) > MAX_ROWS:
        points = Counter(arm for arm, _ in groups)
        groups = _grouped(plan, lambda cell: (cell.arm, f"{points[cell.arm]:,} points" if cell.point else ""))
    _add_columns(table, "arm", "point", "cells", "max tokens", "status", "time")
    for (arm, point), members in list(groups.items())[:MAX_ROWS]:
        counts = Counter(planned.status for planned in members)
        states = ", ".join(f"{number:,} {status}" for status, number in counts.items())
        table.add_row(arm, point, f"{len(members):,}", _tokens(members), states, _group_time(members))
    if len(groups) > MAX_ROWS:
        table.add_row("...", f"{len(groups) - MAX_ROWS:,} more arms")


def _add_columns(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right" if name in {"seed", "cells", "max tokens", "time"} else "left")


def _grouped(plan: list[Planned], key: Callable[[Cell], tuple[str, str]]) -> dict[tuple[str, str], list[Planned]]:
    groups: dict[tuple[str, str], list[Planned]] = {}
    for planned in plan:
        groups.setdefault(key(planned.cell), []).append(planned)
    return groups


def _tokens(members: list[Planned]) -> str:
    """The largest number of tokens of these cells, if it is known."""
    known = [planned.max_tokens for planned in members if planned.max_tokens is not None]
    return f"{max(known):.0f}" if known else "-"


def _group_time(members: list[Planned]) -> str:
    """Summed time of the cells that will run."""
    known = [planned.seconds for planned in members if planned.seconds is not None]
    unknown = len(members) - len(known)
    if not unknown:
        return duration(sum(known)) if any(known) else "-"
    return f"{duration(sum(known))}, {unknown:,} cells unknown" if any(known) else "unknown"


def _total(study: Study, plan: list[Planned]) -> str:
    left = [planned for planned in plan if planned.status in {"to run", "failed"}]
    sampled = study.num_sampled_cells
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
