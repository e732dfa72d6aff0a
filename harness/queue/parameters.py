"""Cells as parameters of Optuna trials: arm, seed, and one value per searched setting."""

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial

from harness.study.schema import Choice, Range
from harness.study.study import Cell, Point, Study

ARM, SEED = "arm", "seed"


class Parameters:
    """Translates between the cells of a study and the parameters of trials."""

    def __init__(self, study: Study) -> None:
        self.arms, self.seeds, self.search = list(study.arms), list(study.settings.seeds), study.settings.search

    def distributions(self, arm: str) -> dict[str, BaseDistribution]:
        """The distributions of all parameters of an arm."""
        own = self.search.space if self.search is not None and arm in self.search.arms else {}
        fixed = {ARM: CategoricalDistribution(self.arms), SEED: CategoricalDistribution(self.seeds)}
        return {**fixed, **{path: _distribution(values) for path, values in own.items()}}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """All parameters of a trial: those that were enqueued, and the others drawn by the sampler."""
        arm = trial.suggest_categorical(ARM, self.arms)
        return {name: _suggest(trial, name, each) for name, each in self.distributions(arm).items()}

    def point(self, params: Mapping[str, Any]) -> Point:
        """The point of a trial."""
        values = {path: self._choice(path, value) for path, value in params.items() if path not in (ARM, SEED)}
        return Point(params[ARM], values)

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        """Whether all parameters of a point are there; a worker may have died while it drew them."""
        if ARM not in params:
            return False
        return self.search is None or params[ARM] not in self.search.arms or set(self.search.space) <= set(params)

    def _choice(self, path: str, value: Any) -> Choice:
        space = self.search.space[path] if self.search is not None else ()
        return value if isinstance(space, Range) else next(choice for choice in space if _stored(choice) == value)


def seed_by_seed(study: Study) -> list[Cell]:
    """The known cells of a study, the first seed of every arm before any second."""
    places = {seed: place for place, seed in enumerate(study.settings.seeds)}
    return sorted(study.cells(), key=lambda cell: places[cell.seed])


def is_sampled(trial: FrozenTrial) -> bool:
    """Whether the sampler draws the point of a trial."""
    return bool(trial.user_attrs.get("sampled"))


def params_of(cell: Cell) -> dict[str, Any]:
    """The parameters of a cell's trial."""
    return {ARM: cell.arm, SEED: cell.seed, **{path: _stored(value) for path, value in cell.point.items()}}


def enqueued(trial: FrozenTrial) -> dict[str, Any]:
    """Parameters of a trial that are known, also before it runs."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def without_seed(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the point."""
    return {name: value for name, value in params.items() if name != SEED}


def key(params: Mapping[str, Any]) -> str:
    """Equal for equal parameters."""
    return json.dumps(dict(params), sort_keys=True)


def _stored(choice: Choice) -> bool | int | float | str | None:
    """A choice as Optuna can store it: mappings and lists become text."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


def _distribution(values: Range | tuple[Choice, ...]) -> BaseDistribution:
    """The distribution of a path of the search space."""
    if not isinstance(values, Range):
        return CategoricalDistribution([_stored(choice) for choice in values])
    low, high, step = values.low, values.high, values.step
    if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
        return IntDistribution(low, high, log=values.log, step=step or 1)
    return FloatDistribution(low, high, log=values.log, step=step)


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """The value of a parameter: enqueued, or drawn by the sampler."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
