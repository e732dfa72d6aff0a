"""Joins a study: `python -m harness.worker STUDY.yaml --out DIR` runs its cells until none is left.

Any number of workers may join, on any machine that sees DIR. `python -m harness.run` on one of them checks the study,
fills the queue, and writes tables and report.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.run import run_guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 2 for an error that the user can fix, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    return run_guarded(lambda: _join(options))


def _join(options: argparse.Namespace) -> int:
    from rich.console import Console

    from harness.execution.local_workers import join
    from harness.monitoring.progress import progress_on
    from harness.study.study import Study

    study = Study.from_yaml(options.study, options.set)
    join(study, options.out, options.storage, progress_on(Console(markup=False, emoji=False)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.worker", description=__doc__)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="run folder of the study")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for the run of the study")
    parser.add_argument("--storage", metavar="URL", help="as for the run of the study")
    return parser


if __name__ == "__main__":
    sys.exit(main())
