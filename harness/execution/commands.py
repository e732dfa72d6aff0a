"""The commands of `python -m harness.run`: list, plan, check, report, run."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from harness.errors import HarnessError, shorten
from harness.execution import session
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system.uris import choose_tracking_uri
from harness.worker.limits import limits_of
from harness.worker.slurm import slurm_cluster


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
        from harness.planning import enough_steps
        from harness.planning.plan import make_plan, plan_table
        from harness.planning.provenance import outdated_sentence
        from harness.planning.requirements import verdict

        plan = make_plan(study, folder)
        with session.weights_of(study):
            requirements = verdict(planned.cell.spec for planned in plan)
        console.print(plan_table(study, plan))
        outdated = outdated_sentence([planned.cell for planned in plan], folder)
        if outdated:
            console.print(outdated, soft_wrap=True)
        if enough := enough_steps.sentence(study, folder):
            console.print(enough, soft_wrap=True)
        console.print(requirements, soft_wrap=True)
        return 0
    if options.check:
        session.check(study, study.cells_to_check(), console)
        console.print("all configurations passed")
        return 0
    if options.report_only:
        folder.write_if_changed(folder.study, study.resolved())
        _gather_again(study, folder, options.storage)
        session.build_report(folder)
        console.print(f"report: {folder.report}", soft_wrap=True)
        return 0
    if options.slurm and options.executor != "slurm":
        raise HarnessError(
            f"--slurm {options.slurm[0]} has no effect without --executor slurm; add it, or leave --slurm out"
        )
    make_executor = slurm_cluster(options.slurm) if options.executor == "slurm" else None
    if options.rerun is not None:
        from harness.planning.provenance import set_aside_outdated

        console.print(set_aside_outdated(study, folder, options.rerun or None), soft_wrap=True)
    uri = choose_tracking_uri(options.tracking_uri, study.settings.tracking.uri)
    chosen = session.Options(options.storage, uri, options.workers, limits_of(options), make_executor)
    return 1 if session.run(study, folder, chosen, console) else 0


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
