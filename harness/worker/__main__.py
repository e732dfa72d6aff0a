"""Joins a study that runs elsewhere: `python -m harness.worker studies/sspe_sweep.yaml --out DIR`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.system.exit_code import exit_code
from harness.worker.limits import add_limits, limits_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for an error of the user, 130 if interrupted."""
    options = parser().parse_args(arguments)
    return exit_code(lambda: _join(options))


def _join(options: argparse.Namespace) -> int:
    from rich.console import Console

    from harness.errors import HarnessError
    from harness.execution.cells import Cells
    from harness.monitoring.progress import progress_on
    from harness.monitoring.run_log import run_log
    from harness.queue.cell_queue import CellQueue
    from harness.queue.storage import default_path
    from harness.results.run_folder import RunFolder
    from harness.study.study import Study
    from harness.system.environment import visible_gpus
    from harness.system.shares import check_devices
    from harness.worker.worker import Worker

    study = Study.from_yaml(options.study, options.set)
    folder = RunFolder(options.out)
    if not folder.study.exists():
        raise HarnessError(
            f"{folder.path} is not the run folder of a study; start `python -m harness.run {options.study} --out "
            f"{folder.path}` first, on any machine that sees the folder"
        )
    check_devices(study.devices, visible_gpus())
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)
    storage = options.storage or default_path(folder.path)
    with run_log(folder.path / "run.log"), CellQueue(study, storage) as queue, progress_on(console) as progress:
        worker = Worker(study, folder, Cells(), queue, progress, limits_of(options))
        worker.run()
    console.print(f"{worker.num_run} cells run; no cell is left")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(prog="python -m harness.worker", description=__doc__)
    made.add_argument("study", type=Path, metavar="STUDY.yaml", help="the same file as that of the run")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="run folder, seen by all machines")
    made.add_argument("--storage", metavar="URL", help="that of the run; default: a journal file in DIR")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="the same settings as the run")
    add_limits(made)
    return made


if __name__ == "__main__":
    sys.exit(main())
