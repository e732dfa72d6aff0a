"""Importance of searched parameters for the objectives of a study, by PED-ANOVA (Watanabe et al., 2023)."""

import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from harness.queue.parameters import ARM, SEED, key, without_seed
from harness.results.run_folder import Row
from harness.study.study import Study

Direction = Literal["maximize", "minimize"]
_MIN_POINTS = 4
"""Importance needs at least this many points."""
_EXPECTED_WARNINGS = (
    "Argument ``normalize`` is an experimental feature",
    "Target and region quantiles select the same set of trials",
    "Some regimes for parameter .* have less than 2 trials",
)
"""The report states the number of points, which is what the last two are about."""


def importance(study: Study, trials: Sequence[FrozenTrial], rows: Mapping[str, Row]) -> dict[str, Any] | None:
    """Importance of each searched parameter for each objective; None if there are too few points.

    Only searched arms count: differences between arms are in the tables. The value of a point is the mean over its
    seeds.

    Args:
        trials: finished ones.
        rows: of finished cells, by cell.
    """
    search = study.settings.search
    points: dict[str, list[tuple[FrozenTrial, Row]]] = {}
    for trial in trials:
        row = rows.get(str(trial.user_attrs.get("cell")))
        if search is not None and trial.params[ARM] in search.arms and row is not None and row["status"] == "done":
            points.setdefault(key(without_seed(trial.params)), []).append((trial, row))
    if len(points) < _MIN_POINTS:
        return None
    quantile = min(0.5, max(0.1, 5 / len(points)))
    shares = {}
    for metric, direction in study.settings.objectives.items():
        means = [(found[0][0], fmean(float(row[metric]) for _, row in found)) for found in points.values()]
        raw = _of_one_objective(means, direction, quantile)
        if sum(raw.values()) > 0:
            shares[metric] = {name: value / sum(raw.values()) for name, value in raw.items()}
    method = f"PED-ANOVA for membership of the best {quantile:.0%} of {len(points)} points"
    return {"method": method, "importance": shares} if shares else None


def _of_one_objective(
    points: list[tuple[FrozenTrial, float]], direction: Direction, quantile: float
) -> dict[str, float]:
    """Importance of each parameter; all zero where values tie."""
    alone = optuna.create_study(direction=direction)
    first = points[0][0].params
    arms = {trial.params[ARM] for trial, _ in points}
    varied = [name for name in first if name != SEED and (name != ARM or len(arms) > 1)]
    for trial, value in points:
        params = {name: trial.params[name] for name in varied}
        distributions = {name: trial.distributions[name] for name in varied}
        alone.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        return get_param_importances(alone, evaluator=evaluator, normalize=False)
