"""One run of a study, from its preflight to its report, with what it prints."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console

from harness.errors import WeightsError
from harness.execution.report_process import ReportProcess
from harness.execution.worker import RunsCells
from harness.monitoring.progress import progress_on
from harness.monitoring.result_table import result_table
from harness.monitoring.run_log import run_log
from harness.results.run_folder import RunFolder
from harness.study.study import Cell, Study
from harness.system.environment import command

if TYPE_CHECKING:
    from reports.study_results import Results

_log = logging.getLogger(__name__)


@contextmanager
def weights_of(study: Study) -> Iterator[None]:
    """Adds the study's file to the message of a `WeightsError`."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{study.source}: {error}") from error


def run_study(
    study: Study,
    out: Path | str | None = None,
    *,
    storage: str | None = None,
    tracking_uri: str | None = None,
    console: Console | None = None,
) -> "Results":
    """Run the cells of a study that have no result yet; write its tables and its report.

    Args:
        out: run folder; runs/<name of the study> by default.
        storage: URL of Optuna's storage; a file in the run folder by default.
        tracking_uri: MLflow server, database or file store; SQLite in the run folder by default.
        console: shows progress, results and paths; standard output by default.

    Raises:
        HarnessError: an error that the user can fix, such as a configuration that cannot run.
    """
    from reports.study_results import Results

    folder = RunFolder(Path(out) if out is not None else Path("runs") / study.name)
    num_failed = run(study, folder, storage, tracking_uri, console or Console(markup=False, emoji=False))
    return Results(folder.path, num_failed)


def run(study: Study, folder: RunFolder, storage: str | None, tracking_uri: str | None, console: Console) -> int:
    """Does the work of `run_study`; returns the number of failed cells."""
    from harness.execution.run_study import execute
    from harness.monitoring.tracker import Tracker

    # A configuration that cannot run is reported before any cell is trained.
    finished = folder.finished()
    check(study, [cell for cell in study.cells_to_check() if cell.id not in finished], console)
    tracker = Tracker(study, folder, tracking_uri)
    with run_log(folder.path / "run.log"):
        _log.info("run started", extra={"fields": {"command": command(), "cells": len(study.cells())}})
        try:
            with ReportProcess(_build) as report:
                outcome = execute(study, folder, storage, _cells(), progress_on(console), tracker, report.start)
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
    from harness.planning.requirements import fetch

    with weights_of(study):
        fetch(cell.spec for cell in cells)
    _cells().check(cells, lambda text: console.print(text, markup=False, highlight=False))


def _cells() -> RunsCells:
    """Runs cells on this machine; torch is imported when the first cell runs."""
    from harness.execution.cells import Cells

    return Cells()


def _build(path: Path) -> None:
    from reports import build

    build(path)


def build_report(folder: RunFolder) -> None:
    """Builds the report in this process."""
    _build(folder.path)
