"""Runs a study: `python -m harness.run studies/sspe_sweep.yaml`. Running the command again resumes the study."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.system.exit_code import exit_code
from harness.worker.limits import add_limits

LIST_KINDS = ("projectors", "superpixels", "datasets", "metrics", "encoders", "llms", "mask_decoders", "checkpoints")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if cells failed, 2 for an error of the user, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from harness.execution.commands import run_command  # imported here so that --help is fast

    return run_command(options)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}; give 1 or more")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.run", description=__doc__)
    parser.add_argument("study", nargs="?", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--plan", action="store_true", help="print the cells and their estimated time; run nothing")
    parser.add_argument(
        "--check", action="store_true", help="run every configuration once on two images; train nothing"
    )
    parser.add_argument(
        "--rerun",
        nargs="?",
        const="",
        metavar="ARM",
        help="also run finished cells again whose results come from another version of the code; of one arm, or of all",
    )
    parser.add_argument("--report-only", action="store_true", help="only build the report again from the tables")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, as in training.steps=100; can be repeated",
    )
    parser.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="processes that run cells on this machine; default: one per GPU, or one per CPU core as memory allows; "
        "with --executor slurm the number of jobs",
    )
    parser.add_argument(
        "--executor",
        choices=("local", "slurm"),
        default="local",
        help="where workers run: as processes on this machine, or as jobs of a SLURM cluster; default: local",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="options of the jobs, as in partition=gpu gres=gpu:1 time=12:00:00; docs/slurm.md lists them",
    )
    add_limits(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results; default: runs/<study>")
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="storage of Optuna: a PostgreSQL URL, or SQLite for one worker; default: a journal file in DIR",
    )
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server, database or file store; default: the study's tracking.uri, then MLFLOW_TRACKING_URI, then "
        "SQLite in the folder of the results",
    )
    parser.add_argument("--list", choices=LIST_KINDS, help="list the names that a study can use")
    return parser


if __name__ == "__main__":
    sys.exit(main())
