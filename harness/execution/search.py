"""Selects the points of a study and computes parameter importance. The only module that imports Optuna.

One Optuna trial is one point of an arm. A trial runs the cells of all seeds; its values are the means over them. Fixed
arms and grids are enqueued, each point once. Sampled points are enqueued with their arm only, alternating between the
searched arms so that each gets an equal share; TPE samples the other parameters. Points that are known before the run
are run seed by seed rather than trial by trial, so that all arms have early results and slow periods of the machine
affect all of them.
"""

import json
import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from harness.errors import HarnessError, StudyError
from harness.results.run_folder import Row
from harness.study.schema import Choice, Range
from harness.study.study import Point, Study
from harness.system.uris import redact


class RunsPoints(Protocol):
    """Runs points and returns their rows."""

    @property
    def finished(self) -> Container[str]:
        """Ids of the cells with a result; a point with an unfinished cell runs again."""

    def seed_by_seed(self, points: Mapping[int, Point]) -> None:
        """Runs the cells of all points, by trial number; the first seed of every point before any second seed."""

    def evaluate(self, point: Point, trial: int) -> list[Row]:
        """Runs the unfinished cells of a point for the trial of this number; returns one row per seed."""


Direction = Literal["maximize", "minimize"]

ARM = "arm"
_KEPT = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)
_IMPORTANCE_TRIALS = 4
"""Smallest number of points for which importance is computed."""


_EXPECTED_WARNINGS = (
    "Argument ``normalize`` is an experimental feature",
    "Target and region quantiles select the same set of trials",
    "Some regimes for parameter .* have less than 2 trials",
)
"""Warnings of Optuna that are suppressed; the report shows the number of points instead."""


class PointFailedError(Exception):
    """A point has no values, because a cell failed or has no value for an objective."""


class Search:
    """The Optuna study of a study; a changed study gets a separate one in the same storage.

    Args:
        url: SQLAlchemy URL of the storage.

    Raises:
        HarnessError: the storage cannot be opened.
    """

    def __init__(self, study: Study, url: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = study
        self.storage = _open(url)
        self.optuna = optuna.create_study(
            storage=self.storage,
            study_name=f"{study.name}-{study.fingerprint}",
            directions=list(study.settings.objectives.values()),
            sampler=RandomSampler(seed=0),
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ExperimentalWarning
            )  # only the function is experimental, not the stored names
            self.optuna.set_metric_names(list(study.settings.objectives))
        if study.num_sampled:
            # A resumed sampler must not repeat earlier samples.
            self.optuna.sampler = TPESampler(seed=len(self.optuna.trials))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()

    def run(self, worker: RunsPoints) -> None:
        """Runs every point without values, including those of a run that was killed.

        No other process may run this study at the same time; the lock of the run folder prevents it.
        """
        self._resume(worker.finished)
        waiting = {
            trial.number: _params(trial)
            for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        }
        if waiting:
            worker.seed_by_seed({n: self._point(params) for n, params in waiting.items() if self._is_whole(params)})
            self.optuna.optimize(
                lambda trial: self._values(trial, worker), n_trials=len(waiting), catch=(PointFailedError,)
            )

    def points(self) -> list[Point]:
        """Every point that was run, in the order of trials."""
        tried: dict[str, Point] = {}
        for trial in self.optuna.get_trials(deepcopy=False):
            if self._is_whole(trial.params):
                tried.setdefault(_key(trial.params), self._point(trial.params))
        return list(tried.values())

    def importance(self) -> dict[str, Any] | None:
        """The importance of the searched parameters for each objective; None if there are too few points."""
        search = self.study.settings.search
        trials = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        last = {_key(trial.params): trial for trial in trials}  # a repeated point counts once
        searched = [trial for trial in last.values() if search is not None and trial.params[ARM] in search.arms]
        if len(searched) < _IMPORTANCE_TRIALS:
            return None
        quantile = min(0.5, max(0.1, 5 / len(searched)))
        shares = {}
        for i, (metric, direction) in enumerate(self.study.settings.objectives.items()):
            raw = _importance(searched, i, direction, quantile)
            if sum(raw.values()) > 0:
                shares[metric] = {name: value / sum(raw.values()) for name, value in raw.items()}
        method = f"PED-ANOVA, for membership in the best {quantile:.0%} of {len(searched)} points"
        return {"method": method, "importance": shares} if shares else None

    def _resume(self, finished: Container[str]) -> None:
        """Enqueues every point that has no result and is not enqueued yet."""
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.optuna.tell(trial.number, state=TrialState.FAIL)
        trials = self.optuna.get_trials(deepcopy=False)
        kept = [trial for trial in trials if self._is_kept(trial, finished)]
        keys = {_key(_params(trial)) for trial in kept}
        for point in self.study.points():
            params = {ARM: point.arm, **{path: label(value) for path, value in point.values.items()}}
            if _key(params) not in keys:
                self.optuna.enqueue_trial(params)
        if self.study.num_sampled:
            unfinished = [trial for trial in trials if _key(_params(trial)) not in keys]
            self._resume_sampled(kept, unfinished)

    def _resume_sampled(self, kept: list[FrozenTrial], unfinished: list[FrozenTrial]) -> None:
        """Enqueues sampled points without a result again, and further ones up to the number of trials."""
        search = self.study.settings.search
        assert search is not None, "points are sampled only in a search"
        num_kept = sum(_is_sampled(trial) for trial in kept)
        repeated = {
            _key(trial.params): trial.params
            for trial in unfinished
            if _is_sampled(trial) and self._is_whole(trial.params)
        }
        for params in repeated.values():
            self.optuna.enqueue_trial(params, user_attrs={"sampled": True})
        for i in range(num_kept + len(repeated), self.study.num_sampled):
            self.optuna.enqueue_trial({ARM: search.arms[i % len(search.arms)]}, user_attrs={"sampled": True})

    def _values(self, trial: Trial, worker: RunsPoints) -> list[float]:
        """Runs a point and returns its objectives."""
        point = self._point(self._suggest(trial))
        try:
            rows = worker.evaluate(point, trial.number)
        except StudyError as error:
            trial.set_user_attr("reason", str(error))
            raise optuna.TrialPruned from error
        trial.set_user_attr("cells", [row["cell"] for row in rows])
        states = {row["status"] for row in rows}
        if states != {"done"}:
            trial.set_user_attr("reason", next(str(row["reason"]) for row in rows if row["status"] != "done"))
            raise PointFailedError if "failed" in states else optuna.TrialPruned
        missing = [metric for metric in self.study.settings.objectives if any(row.get(metric) is None for row in rows)]
        if missing:
            trial.set_user_attr("reason", f"not measured: {', '.join(missing)}")
            raise PointFailedError
        return [fmean(row[metric] for row in rows) for metric in self.study.settings.objectives]

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        """All parameters of a trial; enqueued parameters keep their values."""
        search = self.study.settings.search
        arm = trial.suggest_categorical(ARM, list(self.study.arms))
        if search is None or arm not in search.arms:
            return {ARM: arm}
        return {ARM: arm, **{path: _sample(trial, path, values) for path, values in search.space.items()}}

    def _point(self, params: Mapping[str, Any]) -> Point:
        values = {path: self._choice(path, value) for path, value in params.items() if path != ARM}
        return Point(params[ARM], values)

    def _choice(self, path: str, value: Any) -> Choice:
        search = self.study.settings.search
        space = search.space[path] if search is not None else ()
        return value if isinstance(space, Range) else next(choice for choice in space if label(choice) == value)

    def _is_kept(self, trial: FrozenTrial, finished: Container[str]) -> bool:
        """Whether a trial is waiting, or all cells of its point are finished."""
        if trial.state is TrialState.WAITING or trial.state not in _KEPT:
            return trial.state is TrialState.WAITING
        if not self._is_whole(trial.params):
            return False
        try:
            cells = self.study.cells_of(self._point(trial.params))
        except StudyError:
            return True  # the values are invalid together; running it again changes nothing
        return all(cell.id in finished for cell in cells)

    def _is_whole(self, params: Mapping[str, Any]) -> bool:
        """Whether no parameter is missing, as in a trial that was killed while sampling."""
        search = self.study.settings.search
        if ARM not in params:
            return False
        return search is None or params[ARM] not in search.arms or set(search.space) <= set(params)


def _importance(trials: list[FrozenTrial], index: int, direction: Direction, quantile: float) -> dict[str, float]:
    """PED-ANOVA's importance of each parameter for one objective; all zero if values are tied."""
    alone = optuna.create_study(direction=direction)
    varied = [name for name in trials[0].params if name != ARM or len({trial.params[ARM] for trial in trials}) > 1]
    for trial in trials:
        params = {name: trial.params[name] for name in varied}
        distributions = {name: trial.distributions[name] for name in varied}
        alone.add_trial(optuna.create_trial(params=params, distributions=distributions, value=trial.values[index]))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        return get_param_importances(alone, evaluator=evaluator, normalize=False)


def default_path(folder: Path) -> Path:
    """Optuna's storage in a run folder."""
    return folder / "optuna.db"


def default_url(folder: Path) -> str:
    """URL of the SQLite file in the run folder, for one worker."""
    return f"sqlite:///{default_path(folder).resolve()}"


def label(choice: Choice) -> bool | int | float | str | None:
    """A choice as Optuna can store it: mappings and lists become JSON."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


def _open(url: str) -> RDBStorage:
    try:
        shown = make_url(url).render_as_string(hide_password=True)
        return RDBStorage(url)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise HarnessError(
            f"--storage {redact(url)!r} is not a valid storage URL ({redact(str(error))}); use one like sqlite:///optuna.db"
        ) from error
    except OperationalError as error:
        raise HarnessError(
            f"the storage {shown} cannot be opened: {error.orig}; start the database or correct the URL"
        ) from error


def _sample(trial: Trial, path: str, values: Range | tuple[Choice, ...]) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(path, [label(choice) for choice in values])
    low, high, step = values.low, values.high, values.step
    if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
        return trial.suggest_int(path, low, high, step=step or 1, log=values.log)
    return trial.suggest_float(path, low, high, step=step, log=values.log)


def _is_sampled(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("sampled"))


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """Parameters of a trial, including those that are enqueued."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), sort_keys=True)
