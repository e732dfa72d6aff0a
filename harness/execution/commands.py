"""The commands of `python -m harness.run`: list, plan, check, report, run."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from rich.console import Console

from harness.errors import HarnessError, WeightsError, shorten
from harness.execution.report_process import ReportProcess
from harness.execution.worker import RunsCells
from harness.monitoring.progress import progress_on
from harness.monitoring.result_table import result_table
from harness.monitoring.run_log import run_log
from harness.results.run_folder import RunFolder
from harness.study.study import Cell, Study
from harness.system.environment import command
from harness.system.uris import choose_tracking_uri

_log = logging.getLogger(__name__)


def run_command(options: argparse.Namespace) -> int:
    """Runs the command selected by the options of `harness.run`; returns the exit code.

    Raises:
        HarnessError: an error that the user can fix.
    """
    # Text of a study is printed literally: rich must not interpret [tags] and :emoji: in it.
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)
    if options.list:
        from harness.planning.listing import listing

        console.print(listing(options.list))
        return 0
    if options.study is None:
        raise HarnessError("no study was passed; name one, as in: python -m harness.run studies/sspe_sweep.yaml")
    study = Study.from_yaml(options.study, options.set)
    folder = RunFolder(_folder(options.out or Path("runs") / study.name))
    if options.plan:
        from harness.planning.plan import make_plan, plan_table
        from harness.planning.provenance import outdated_sentence
        from harness.planning.requirements import verdict

        plan = make_plan(study, folder)
        with _weights_of(study):
            requirements = verdict(planned.cell.spec for planned in plan)
        console.print(plan_table(study, plan))
        outdated = outdated_sentence([planned.cell for planned in plan], folder)
        if outdated:
            console.print(outdated, soft_wrap=True)
        console.print(requirements, soft_wrap=True)
        return 0
    if options.check:
        _check(study, study.cells_to_check(), console)
        console.print("all configurations passed")
        return 0
    if options.report_only:
        folder.write_if_changed(folder.study, study.resolved())
        _gather_again(study, folder, options.storage)
        _report(folder)
        console.print(f"report: {folder.report}", soft_wrap=True)
        return 0
    if options.rerun is not None:
        from harness.planning.provenance import set_aside_outdated

        console.print(set_aside_outdated(study, folder, options.rerun or None), soft_wrap=True)
    uri = choose_tracking_uri(options.tracking_uri, study.settings.tracking.uri)
    return _execute(study, folder, options.storage, uri, console)


def _folder(path: Path) -> Path:
    """The folder of the results, which may not exist yet.

    Raises:
        HarnessError: no folder of this name can be created.
    """
    try:
        existing_file = next((one for one in (path, *path.parents) if one.exists() and not one.is_dir()), None)
        path.lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HarnessError(
            f"{shorten(str(path), 300)} cannot be a folder ({reason}); choose another with --out"
        ) from None
    if existing_file is not None:
        raise HarnessError(
            f"{existing_file} is a file, so the folder {path} cannot be created; choose another with --out"
        )
    return path


@contextmanager
def _weights_of(study: Study) -> Iterator[None]:
    """Adds the study's file to the message of a `WeightsError`."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{study.source}: {error}") from error


def _execute(study: Study, folder: RunFolder, storage: str | None, uri: str | None, console: Console) -> int:
    from harness.execution.run_study import execute
    from harness.monitoring.tracker import Tracker

    # A configuration that cannot run is reported before any cell is trained.
    finished = folder.finished()
    _check(study, [cell for cell in study.cells_to_check() if cell.id not in finished], console)
    tracker = Tracker(study, folder, uri)
    with run_log(folder.path / "run.log"):
        _log.info("run started", extra={"fields": {"command": command(), "cells": len(study.cells())}})
        try:
            with ReportProcess(_build_report) as report:
                outcome = execute(study, folder, storage, _cells(), progress_on(console), tracker, report.start)
        except BaseException as error:
            _log.info("run interrupted", extra={"fields": {"by": type(error).__name__}})
            if folder.results.exists():
                _report(folder)
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
        _report(folder)
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
    return 1 if outcome.num_failed else 0


def _gather_again(study: Study, folder: RunFolder, storage: str | None) -> None:
    """Writes the tables again, with the rows of cells that finished since.

    Tables are left unchanged if the folder lacks the row of any of their cells.
    """
    from harness.execution.run_study import known_cells

    rows = folder.rows()
    tabled = folder.tabled()
    added = [cell.id for cell in known_cells(study, folder, storage) if cell.id in rows and cell.id not in tabled]
    if rows and set(tabled) <= rows.keys():
        folder.gather([*tabled, *added])


def _check(study: Study, cells: Sequence[Cell], console: Console) -> None:
    """Fetches the weights of these cells and runs each distinct configuration once."""
    if not cells:
        return
    from harness.planning.requirements import fetch

    with _weights_of(study):
        fetch(cell.spec for cell in cells)
    _cells().check(cells, lambda text: console.print(text, markup=False, highlight=False))


def _cells() -> RunsCells:
    """Runs cells on this machine; torch is imported when the first cell runs."""
    from harness.execution.cells import Cells

    return Cells()


def _build_report(path: Path) -> None:
    from reports import build

    build(path)


def _report(folder: RunFolder) -> None:
    """Builds the report in this process."""
    _build_report(folder.path)
