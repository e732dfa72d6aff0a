"""One run of a study, from its preflight to its report, with what it prints."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console

from harness.errors import HarnessError, WeightsError
from harness.execution.cells import Cells
from harness.execution.report_process import ReportProcess
from harness.monitoring.progress import progress_on
from harness.monitoring.result_table import result_table
from harness.monitoring.run_log import run_log
from harness.results.run_folder import RunFolder
from harness.study.study import Cell, Study
from harness.system.environment import command, free_memory_gib, visible_gpus
from harness.system.shares import check_devices, shares
from harness.system.uris import redact
from harness.worker.limits import DEFAULT_LIMITS, Limits
from harness.worker.worker import RunsCells

if TYPE_CHECKING:
    from submitit import Executor

    from harness.execution.run_study import ClusterTeam, Team
    from harness.worker.slurm import MakeExecutor
    from reports.study_results import Results

_log = logging.getLogger(__name__)


@contextmanager
def weights_of(study: Study) -> Iterator[None]:
    """Adds the study's file to the message of a `WeightsError`."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{study.source}: {error}") from error


@dataclass(frozen=True, slots=True)
class Options:
    """How a study is run.

    Attributes:
        storage: URL of Optuna's storage; None for a journal file in the run folder.
        tracking_uri: MLflow server, database or file store; None for SQLite in the run folder.
        workers: processes that run cells; 1 runs them in this process, None chooses by the machine.
        limits: retries and time limit of a cell.
        make_executor: makes what submits the workers as jobs of a cluster; None for processes on this machine.
    """

    storage: str | None = None
    tracking_uri: str | None = None
    workers: int | None = 1
    limits: Limits = DEFAULT_LIMITS
    make_executor: "MakeExecutor | None" = None


def run_study(
    study: Study,
    out: Path | str | None = None,
    *,
    storage: str | None = None,
    tracking_uri: str | None = None,
    workers: int | None = 1,
    console: Console | None = None,
) -> "Results":
    """Run the cells of a study that have no result yet; write its tables and its report.

    Args:
        out: run folder; runs/<name of the study> by default.
        storage: URL of Optuna's storage; a file in the run folder by default.
        tracking_uri: MLflow server, database or file store; SQLite in the run folder by default.
        workers: processes that run cells; 1 runs them in this process, None chooses by the machine. A script that asks
            for more than 1 must guard its own start by `if __name__ == "__main__"`.
        console: shows progress, results and paths; standard output by default.

    Raises:
        HarnessError: an error that the user can fix, such as a configuration that cannot run.
    """
    from reports.study_results import Results

    folder = RunFolder(Path(out) if out is not None else Path("runs") / study.name)
    options = Options(storage, tracking_uri, workers)
    num_failed = run(study, folder, options, console or Console(markup=False, emoji=False))
    return Results(folder.path, num_failed)


def run(study: Study, folder: RunFolder, options: Options, console: Console) -> int:
    """Does the work of `run_study`; returns the number of failed cells."""
    from harness.execution.run_study import execute
    from harness.monitoring.tracker import Tracker

    # Options and configurations that cannot run are reported before any cell is trained.
    executor = _executor(study, folder, options)
    finished = folder.finished()
    check(study, [cell for cell in study.cells_to_check() if cell.id not in finished], console)
    tracker = Tracker(study, folder, options.tracking_uri)
    team = _team(study, folder, options, executor, console)
    with run_log(folder.path / "run.log"):
        _log.info("run started", extra={"fields": {"command": command(), "cells": len(study.cells())}})
        try:
            with ReportProcess(_build) as report:
                outcome = execute(
                    study,
                    folder,
                    options.storage,
                    _cells(),
                    progress_on(console),
                    tracker,
                    report.start,
                    team,
                    options.limits,
                )
        except BaseException as error:
            _log.info("run interrupted", extra={"fields": {"by": type(error).__name__}})
            if folder.results.exists():
                build_report(folder)
            raise
        _log.info("run ended", extra={"fields": {"ran": outcome.num_run, "failed": outcome.num_failed}})
    if outcome.num_superseded:
        console.print(
            f"{outcome.num_superseded} rows in {folder.cells} are superseded, because the code of their projector or "
            "superpixels has changed; they are kept, but not included in the tables"
        )
    if outcome.num_others:
        console.print(
            f"{outcome.num_others} cells in {folder.cells} belong to other versions of this study; they are kept, but "
            "not included in the tables"
        )
    if not outcome.num_run:
        console.print(f"nothing to run: all {len(outcome.cells)} cells have finished")
    if not folder.is_reported:
        build_report(folder)
    rows = folder.rows()
    tracker.sync([rows[cell.id] for cell in outcome.cells if cell.id in rows], folder.outputs())
    console.print(result_table(pd.read_parquet(folder.results)))
    console.print(f"report: {folder.report}", soft_wrap=True)
    if outcome.num_failed:
        console.print(
            f"{outcome.num_failed} cells failed; the report lists the reasons; run the same command again to retry them"
        )
    if link := tracker.link():
        console.print(f"MLflow: {link}", soft_wrap=True, markup=False)
    if shortfall := tracker.shortfall():
        console.print(shortfall, soft_wrap=True, markup=False)
    return outcome.num_failed


def check(study: Study, cells: Sequence[Cell], console: Console) -> None:
    """Fetches the weights of these cells and runs each distinct configuration once."""
    if not cells:
        return
    check_devices(study.devices, visible_gpus())
    from harness.planning.requirements import fetch

    with weights_of(study):
        fetch(cell.spec for cell in cells)
    _cells().check(cells, lambda text: console.print(text, markup=False, highlight=False))


def _cells() -> RunsCells:
    """Runs cells on this machine; torch is imported when the first cell runs."""
    return Cells()


def _executor(study: Study, folder: RunFolder, options: Options) -> "Executor | None":
    """What submits the jobs of a run; None where workers are processes on this machine.

    Raises:
        HarnessError: there is no number of workers, they cannot use the storage, or nothing can be submitted.
    """
    if options.make_executor is None:
        return None
    if options.workers is None:
        raise HarnessError(
            "--executor slurm needs --workers N: the number of jobs, which does not depend on this machine"
        )
    if options.storage is not None and options.storage.startswith("sqlite"):
        raise HarnessError(
            f"--storage {redact(options.storage)!r} is for one process, and the workers are jobs on other machines; "
            "leave --storage out, or give a PostgreSQL URL"
        )
    return options.make_executor(folder.path / "slurm", study.name)


def _team(
    study: Study, folder: RunFolder, options: Options, executor: "Executor | None", console: Console
) -> "Team | ClusterTeam | None":
    """The workers of a run; None to run cells in this process. Prints what was chosen.

    Raises:
        HarnessError: several processes cannot use the storage.
    """
    from harness.execution.run_study import ClusterTeam, Team

    finished = folder.finished()
    left = sum(cell.id not in finished for cell in study.cells()) + study.num_sampled_cells
    if executor is not None and options.workers is not None and left:
        count = min(options.workers, left)
        console.print(f"{count} workers, each a job of the cluster; {left} cells to run", markup=False, highlight=False)
        return ClusterTeam(count, executor, Cells, console)
    devices = study.devices
    chosen = shares(options.workers, left, visible_gpus(), free_memory_gib(), devices)
    if len(chosen) < 2 or left == 0:
        return None
    storage = options.storage
    if storage is not None and storage.startswith("sqlite"):
        raise HarnessError(
            f"--storage {redact(storage)!r} is for one process, and there are {len(chosen)} workers; leave "
            "--storage out, give a PostgreSQL URL, or use --workers 1"
        )
    of_gpus = "one per GPU" if devices == 1 else f"one per {devices} GPUs"
    where = of_gpus if chosen[0].gpus else f"{chosen[0].threads} thread{'s' * (chosen[0].threads > 1)} each"
    console.print(f"{len(chosen)} workers, {where}; {left} cells to run", markup=False, highlight=False)
    return Team(chosen, Cells, console)


def _build(path: Path) -> None:
    from reports import build

    build(path)


def build_report(folder: RunFolder) -> None:
    """Builds the report in this process."""
    _build(folder.path)
