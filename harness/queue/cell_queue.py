"""Optuna's storage as the queue of a study's cells.

One Optuna trial is one cell: an arm, a search point and a seed. Known cells (arms without a search, and grids) are
enqueued seed by seed, so that every arm has a result early. Sampled points are enqueued with arm and first seed only;
TPE draws the point when a worker claims the trial, and the same point is then enqueued for the other seeds. Any
number of processes may claim cells from one storage. With one worker, sampled points repeat from run to run; with
several, they depend on which cells had finished when a point was drawn.
"""

import json
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from harness.errors import StudyError
from harness.queue.importance import importance
from harness.queue.parameters import (
    ARM,
    SEED,
    Parameters,
    enqueued,
    is_sampled,
    key,
    params_of,
    seed_by_seed,
    without_seed,
)
from harness.queue.storage import adding_trials, open_storage
from harness.results.run_folder import Row
from harness.study.study import Cell, Point, Study

_UNNAMED_S = 30.0
"""How long a claimed trial may lack the name of its cell before its worker counts as dead."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A cell that this process has taken from the queue.

    Attributes:
        trial: number of its Optuna trial.
        attempts: workers that died while they ran this cell.
    """

    cell: Cell
    trial: int
    attempts: int


class CellQueue:
    """The cells of a study, claimed one at a time by any number of processes.

    A study with other settings gets another Optuna study in the same storage.

    Args:
        storage: SQLAlchemy URL, or the path of a journal file.
        is_joining: refer to `harness.queue.storage.open_storage`.

    Raises:
        HarnessError: the storage cannot be opened.
    """

    def __init__(self, study: Study, storage: str | Path, *, is_joining: bool = False) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = study
        self.parameters = Parameters(study)
        self.storage = open_storage(storage, is_joining=is_joining)
        self.optuna = optuna.create_study(
            storage=self.storage,
            study_name=f"{study.name}-{study.fingerprint}",
            directions=list(study.settings.objectives.values()),
            load_if_exists=True,
        )
        self._study_id = self.storage.get_study_id_from_name(self.optuna.study_name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the function may change, the stored names do not
            self.optuna.set_metric_names(list(study.settings.objectives))
        self._known = {key(params_of(cell)): cell for cell in seed_by_seed(study)}
        self._order = {key: number for number, key in enumerate(self._known)}
        self._keys: dict[int, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(self.storage, RDBStorage):
            self.storage.remove_session()
            self.storage.engine.dispose()

    def fill(self, rows: Mapping[str, Row]) -> None:
        """Enqueue every cell that has no result and is not in the queue. One process at a time may do this.

        Args:
            rows: of finished cells, by cell.
        """
        active = {self._key(trial) for trial in self._trials() if not trial.state.is_finished()}
        with adding_trials(self.storage):
            self._restore(rows, active)
        trials = self._trials()
        with adding_trials(self.storage):
            for name, cell in self._known.items():
                if cell.id not in rows and name not in active:
                    self.optuna.enqueue_trial(params_of(cell))
            if self.study.num_sampled:
                self._fill_sampled(trials, active, rows)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """All trials, or those in some states, in the order of their numbers."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def _key(self, trial: FrozenTrial) -> str:
        """The key of a trial's parameters; computed once, as soon as all of them are there."""
        found = self._keys.get(trial.number)
        if found is None:
            params = enqueued(trial)
            found = key(params)
            if SEED in params and self.parameters.is_complete(params):
                self._keys[trial.number] = found
        return found

    def _restore(self, rows: Mapping[str, Row], active: set[str]) -> None:
        """Add a finished trial for every finished cell without one, as after the loss of the storage.

        A cell that waits or runs gets its values when a worker claims it and finds the row.
        """
        known = self._trials(TrialState.COMPLETE)
        told = {str(trial.user_attrs.get("cell")) for trial in known}
        ids = {cell.id: cell for cell in self._known.values()}
        for cell_id, row in rows.items():
            cell = ids.get(cell_id) or self._sampled_cell(row)
            values = [row.get(metric) for metric in self.study.settings.objectives]
            if cell is None or cell_id in told or row["status"] != "done" or None in values:
                continue
            if key(params_of(cell)) in active:
                continue
            attributes = {"cell": cell_id, **({} if cell_id in ids else {"sampled": True})}
            self.optuna.add_trial(
                optuna.create_trial(
                    params=params_of(cell),
                    distributions=self.parameters.distributions(cell.arm),
                    values=[float(value) for value in values if value is not None],
                    user_attrs=attributes,
                )
            )

    def _sampled_cell(self, row: Row) -> Cell | None:
        """The cell of a row, if it belongs to a point that this study sampled."""
        search = self.study.settings.search
        if search is None or not self.study.num_sampled or row["arm"] not in search.arms:
            return None
        with suppress(StudyError, ValueError, KeyError):
            cells = self.study.cells_of(Point(row["arm"], json.loads(row["point"])))
            return next((cell for cell in cells if cell.id == row["cell"]), None)
        return None

    def _fill_sampled(self, trials: list[FrozenTrial], active: set[str], rows: Mapping[str, Row]) -> None:
        """Points drawn before are enqueued again where a cell lacks a result; new ones fill up the number asked for."""
        search = self.study.settings.search
        assert search is not None, "only a search samples"
        drawn: dict[str, dict[str, Any]] = {}
        num_undrawn = 0
        for trial in trials:
            if is_sampled(trial) and self.parameters.is_complete(trial.params):
                drawn.setdefault(key(without_seed(trial.params)), without_seed(trial.params))
            elif is_sampled(trial) and not trial.state.is_finished():
                num_undrawn += 1
        for params in drawn.values():
            self._enqueue_seeds(params, self.study.settings.seeds, active, rows)
        for i in range(len(drawn) + num_undrawn, self.study.num_sampled):
            arm = search.arms[i % len(search.arms)]
            self.optuna.enqueue_trial({ARM: arm, SEED: self.study.settings.seeds[0]}, user_attrs={"sampled": True})

    def claim(self) -> Claim | None:
        """Take the next waiting cell in the order of the study; None if none waits now.

        Points of a search whose values are invalid together are pruned on the way.
        """
        last = len(self._order)
        trials = [(self._order.get(self._key(each), last), each) for each in self._trials(TrialState.WAITING)]
        for _, waiting in sorted(trials, key=lambda pair: pair[0]):  # stable: equal places in the order of trials
            trial_id = self._trial_id(waiting.number)
            try:
                if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                    continue
                cell = self._cell(Trial(self.optuna, trial_id))
            except UpdateFinishedTrialError:
                continue
            if cell is not None:
                return Claim(cell, waiting.number, int(waiting.user_attrs.get("attempts", 0)))
        return None

    def name(self, claim: Claim) -> bool:
        """Record which cell a trial runs, once its lease is held: from now on, the cell without a lease is dead.

        Returns whether the trial still belongs to this process, which may have been slow and taken for dead.
        """
        try:
            self.storage.set_trial_user_attr(self._trial_id(claim.trial), "cell", claim.cell.id)
        except UpdateFinishedTrialError:
            return False
        return True

    def tell(self, claim: Claim, row: Row) -> None:
        """Record the outcome of a cell; its objectives are the values of its trial."""
        objectives = list(self.study.settings.objectives)
        missing = [metric for metric in objectives if row.get(metric) is None]
        if row["status"] == "done" and not missing:
            self._end(claim.trial, TrialState.COMPLETE, values=[float(row[metric]) for metric in objectives])
        else:
            reason = row.get("reason") or f"not measured: {', '.join(missing)}"
            state = TrialState.PRUNED if row["status"] == "skipped" else TrialState.FAIL
            self._end(claim.trial, state, str(reason))

    def completed(self) -> list[str]:
        """The cell of each complete trial."""
        trials = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [str(trial.user_attrs.get("cell")) for trial in trials]

    def release(self, claim: Claim) -> None:
        """Give an unfinished cell back, for another worker or a later run. One process at a time may do this."""
        self._again(self._trial(claim.trial), claim.attempts, "released by its worker")

    def running(self) -> dict[int, str]:
        """Cells that some worker has claimed, by trial; empty text where the worker has not named the cell yet."""
        found = self._trials(TrialState.RUNNING)
        return {trial.number: str(trial.user_attrs.get("cell", "")) for trial in found}

    def is_unnamed_for_long(self, number: int) -> bool:
        """Whether a worker claimed this trial some time ago and died before it named its cell."""
        started = self._trial(number).datetime_start
        return started is not None and time.time() - started.timestamp() > _UNNAMED_S

    def cell_of(self, number: int) -> Cell:
        """The cell of a trial whose parameters are all there."""
        params = enqueued(self._trial(number))
        cells = self.study.cells_of(self.parameters.point(without_seed(params)))
        return next(cell for cell in cells if cell.seed == params[SEED])

    def cell_id_of(self, number: int) -> str:
        """The id of the cell of a trial; empty if its parameters are not all there."""
        is_known = self.parameters.is_complete(without_seed(enqueued(self._trial(number))))
        return self.cell_of(number).id if is_known else ""

    def num_deaths(self, number: int) -> int:
        """How many workers died in the cell of this trial before."""
        return int(self._trial(number).user_attrs.get("attempts", 0))

    def release_dead(self, number: int) -> None:
        """Enqueue the cell of a dead worker again, without counting its death."""
        self._again(self._trial(number), 0, "its worker died")

    def return_dead(self, number: int) -> None:
        """Enqueue the cell of a dead worker again. One process at a time may do this."""
        self._again(self._trial(number), self.num_deaths(number) + 1, "its worker died")

    def give_up(self, number: int, reason: str) -> None:
        """End the trial of a cell that no worker will run again."""
        self._end(number, TrialState.FAIL, reason)

    def importance(self, rows: Mapping[str, Row]) -> dict[str, Any] | None:
        """Refer to `harness.queue.importance.importance`."""
        return importance(self.study, self._trials(TrialState.COMPLETE), rows)

    def points(self) -> list[Point]:
        """Every point that was drawn, in the order of trials; each once."""
        found: dict[str, Point] = {}
        for trial in self._trials():
            params = without_seed(enqueued(trial))
            if self.parameters.is_complete(params):
                found.setdefault(key(params), self.parameters.point(params))
        return list(found.values())

    def _cell(self, trial: Trial) -> Cell | None:
        """The cell of a trial that was just claimed; None for a point whose values do not go together."""
        # A function of the history and of the trial's number: a resumed run draws no point twice.
        self.optuna.sampler = TPESampler(seed=trial.number, constant_liar=True)
        params = self.parameters.suggest(trial)
        point = self.parameters.point(without_seed(params))
        try:
            cells = self.study.cells_of(point)
        except StudyError as error:
            self._end(trial.number, TrialState.PRUNED, str(error))
            return None
        cell = next(cell for cell in cells if cell.seed == params[SEED])
        if trial.user_attrs.get("sampled") and params[SEED] == self.study.settings.seeds[0]:
            active = {self._key(each) for each in self._trials()}
            self._enqueue_seeds(without_seed(params), self.study.settings.seeds[1:], active, {})
        return cell

    def _enqueue_seeds(
        self, params: Mapping[str, Any], seeds: Iterable[int], active: set[str], rows: Mapping[str, Row]
    ) -> None:
        """Enqueue a drawn point for seeds that neither are active nor have a result."""
        try:
            cells = {cell.seed: cell for cell in self.study.cells_of(self.parameters.point(params))}
        except StudyError:
            return  # another run changes nothing about a point whose values do not go together
        for seed in seeds:
            whole = {**params, SEED: seed}
            if cells[seed].id not in rows and key(whole) not in active:
                self.optuna.enqueue_trial(whole, user_attrs={"sampled": True})

    def _again(self, trial: FrozenTrial, attempts: int, reason: str) -> None:
        """End a trial, and enqueue its cell unless another trial has it."""
        if trial.state.is_finished():
            return  # another process did this
        params = enqueued(trial)
        waiting = self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        is_enqueued = self.parameters.is_complete(params) and key(params) in {key(enqueued(each)) for each in waiting}
        if not is_enqueued:
            kept = {key: value for key, value in trial.user_attrs.items() if key == "sampled"}
            self.optuna.enqueue_trial(params, user_attrs={**kept, "attempts": attempts})
        # Last: if this process dies here, the cell has two trials, and otherwise it would have none.
        self._end(trial.number, TrialState.FAIL, reason)

    def _end(self, number: int, state: TrialState, reason: str = "", values: list[float] | None = None) -> None:
        trial_id = self._trial_id(number)
        with suppress(UpdateFinishedTrialError):  # a worker that was taken for dead may have been slow
            if reason:
                self.storage.set_trial_user_attr(trial_id, "reason", reason)
            self.storage.set_trial_state_values(trial_id, state, values)

    def _trial(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        """The storage's id of a trial."""
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
