"""What a cell may take, and the options that set it, in a module that imports nothing heavy."""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cell may take.

    Attributes:
        retries: how often a cell is run again after a worker died in it.
        cell_seconds: wall-clock time of a cell; none for no limit.
    """

    retries: int = 2
    cell_seconds: float | None = None


DEFAULT_LIMITS = Limits()


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options of `limits_of` to a command."""
    parser.add_argument(
        "--retries",
        type=int,
        default=DEFAULT_LIMITS.retries,
        metavar="N",
        help="runs of a cell after a worker died in it; default: %(default)s",
    )
    parser.add_argument("--cell-minutes", type=float, metavar="M", help="time limit of a cell; default: none")


def limits_of(options: argparse.Namespace) -> Limits:
    """The limits that a command was given."""
    return Limits(options.retries, 60 * options.cell_minutes if options.cell_minutes else None)
