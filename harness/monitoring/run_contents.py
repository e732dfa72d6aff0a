"""Names, tags, parameters and metrics of MLflow runs, computed from a study and rows."""

import getpass
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pandas as pd

from harness.results.metrics import METRICS, aggregate_seeds
from harness.results.run_folder import Row, in_short
from harness.study.study import Cell, Study
from harness.system.environment import command, describe_environment, git_commit

_TAGS = ("arm", "point", "seed", "cell", "status", "trial", "started_at", "command")
VIEW = "cells"
"""Key of the shared view that a link to the experiment selects."""
_MAX_NOTE = 4000
"""Characters of a description; MLflow's tags hold 5000."""


@dataclass(frozen=True, slots=True)
class RunContents:
    """Name, tags, parameters and dataset of a run.

    Args:
        data: settings of the dataset; empty for none.
    """

    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    data: dict[str, Any]

    def tagged(self, tags: dict[str, str]) -> "RunContents":
        """A copy with additional tags."""
        return replace(self, tags=self.tags | tags)

    @property
    def data_digest(self) -> str:
        """Hash of the settings of the dataset."""
        return hashlib.sha256(json.dumps(self.data, sort_keys=True).encode()).hexdigest()[:8]


def of_cell(cell: Cell) -> Row:
    """The row of a cell before it runs."""
    return {
        **cell.columns,
        "status": "running",
        "environment": json.dumps(describe_environment()),
        "command": command(),
    }


def cell_contents(row: Row, study: Study) -> RunContents:
    """The contents of a cell's run."""
    spec = json.loads(row.get("spec") or "{}")
    commit = json.loads(row.get("environment") or "{}").get("git_commit")
    return RunContents(cell_name(row), cell_tags(row, study) | _source(study, commit), dict(flat(spec)), spec["data"])


def cell_tags(row: Row, study: Study) -> dict[str, str]:
    """Columns to filter by, and the description; both change when a cell ends."""
    lines = [f"Arm `{row['arm']}`, seed {row['seed']}, of the study `{study.name}`: {study.settings.question}"]
    point = json.loads(row["point"])
    lines += [f"- `{path}`: {value}" for path, value in point.items()]
    if row["status"] in {"failed", "skipped"}:
        lines += ["", f"{row['status'].capitalize()}: {in_short(row.get('reason'))}"]
    tags = {tag: str(row[tag]) for tag in _TAGS if row.get(tag) is not None}
    tags |= {"version": version(row)} if "started_at" in row else {}
    return tags | {"kind": "cell", "mlflow.note.content": "\n".join(lines)[:_MAX_NOTE]}


def cell_name(row: Row) -> str:
    """Arm, point and seed, as in `sspe (blocks=3) seed 0`."""
    return f"{_variant(row['arm'], row['point'])} seed {row['seed']}"


def study_contents(study: Study) -> RunContents:
    """The contents of the study's run, which is the parent of the cells' runs."""
    settings = study.settings
    params = {
        "arms": ", ".join(study.arms),
        "baseline": ", ".join(settings.baseline),
        "seeds": ", ".join(map(str, settings.seeds)),
        "objectives": ", ".join(f"{direction} {metric}" for metric, direction in settings.objectives.items()),
        **({} if settings.search is None else dict(flat(settings.search.model_dump(mode="json"), "search."))),
    }
    tags = {"kind": "study", "mlflow.note.content": settings.question} | _source(study, git_commit())
    specs = [cell.spec.model_dump(mode="json")["data"] for cell in study.cells()]
    shared = specs[0] if specs and all(data == specs[0] for data in specs) else {}
    return RunContents(study.name, tags, dict(params), shared)


def experiment_tags(study: Study) -> dict[str, str]:
    """The description of an experiment, and a shared view of all cells, sorted by the first objective.

    By default, MLflow's UI nests cells under the study, shows no metrics and opens the traces. A shared view is stored
    as a tag of the experiment (MLflow 3.17).
    """
    objectives = study.settings.objectives
    first, direction = next(iter(objectives.items()))
    columns = [f"metrics.`{name}`" for name in objectives] + [f"tags.`{name}`" for name in ("arm", "seed", "status")]
    view = {
        "orderByKey": f"metrics.`{first}`",
        "orderByAsc": direction == "minimize",
        "selectedColumns": ["attributes.`Source`", "attributes.`Dataset`", *columns],
    }
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": study.settings.question,
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }


def summary(rows: Iterable[Row], study: Study) -> tuple[dict[str, float], str]:
    """The objectives of every arm, as metrics and as a description with a table.

    A searched arm is shown at the point with the best first objective, as the description states.
    """
    objectives = study.settings.objectives
    first, direction = next(iter(objectives.items()))
    done = pd.DataFrame([row for row in rows if row["status"] == "done"])
    metrics: dict[str, float] = {}
    lines = ["| arm | cells | " + " | ".join(METRICS[name].label for name in objectives) + " |"]
    lines.append("|---|---:|" + "---:|" * len(objectives))
    for arm in study.arms if len(done) else ():
        points = [
            (point, aggregate_seeds(cells), len(cells)) for point, cells in done[done["arm"] == arm].groupby("point")
        ]
        points = [found for found in points if math.isfinite(found[1].get(first, math.nan))]
        if not points:
            continue
        choose = max if direction == "maximize" else min
        point, means, num_cells = choose(points, key=lambda found: found[1][first])
        known = {name: means[name] for name in objectives if math.isfinite(means.get(name, math.nan))}
        metrics |= {f"{name}/{arm}": value for name, value in known.items()}
        shown = [f"{known[name]:.{METRICS[name].decimals}f}" if name in known else "-" for name in objectives]
        lines.append(f"| {_variant(arm, str(point))} | {num_cells} | " + " | ".join(shown) + " |")
    note = [study.settings.question, "", "Means over seeds.", "", *lines]
    if study.settings.search is not None:
        note[2] += f" A searched arm is shown at its best point, whose {METRICS[first].label} is a biased estimate."
    return metrics, "\n".join(note)[:_MAX_NOTE]


def results(row: Row) -> dict[str, float]:
    """All metrics of a row."""
    return {metric: float(row[metric]) for metric in METRICS if row.get(metric) is not None}


def results_by_step(row: Row) -> list[tuple[str, float, int]]:
    """All metrics of a row at its number of steps, and the scores of earlier budgets at theirs."""
    found = []
    for early in json.loads(row.get("early") or "[]"):
        found += [(name, value, int(early["steps"])) for name, value in results(early).items()]
    return [*found, *((name, value, int(row.get("steps") or 0)) for name, value in results(row).items())]


def curve(row: Row) -> list[dict[str, float]]:
    """The points of the training curve."""
    points: list[dict[str, float]] = json.loads(row.get("curve") or "[]")
    return points


def point_metrics(point: Mapping[str, float]) -> dict[str, float]:
    """The finite values of one point of a training curve, as metrics."""
    return {f"training/{part}": float(v) for part, v in point.items() if part != "step" and math.isfinite(v)}


def version(row: Row) -> str:
    """A string that changes when a cell runs again or is timed again."""
    return f"{row['started_at']} {row.get('latency_round') or ''}".strip()


def start_ms(row: Row) -> int:
    """Start time of a cell, in milliseconds since 1970."""
    return int(1000 * datetime.fromisoformat(row["started_at"]).timestamp())


def end_ms(row: Row) -> int:
    """End time of a cell, in milliseconds since 1970."""
    return start_ms(row) + int(1000 * (row.get("wall_seconds") or 0))


def flat(spec: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values of nested mappings."""
    for key, value in spec.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _variant(arm: str, point: str) -> str:
    settings = ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in json.loads(point).items())
    return f"{arm} ({settings})" if settings else arm


def _source(study: Study, commit: str | None) -> dict[str, str]:
    """Tags that MLflow's UI shows in its built-in columns."""
    tags = {"mlflow.source.name": study.source, "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    return tags if commit is None else tags | {"mlflow.source.git.commit": commit}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user of a container may have no name
        return "unknown"
