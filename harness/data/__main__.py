"""`python -m harness.data check DATASET --root DIR`: compares a dataset on disk with what was published."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness import data
from harness.errors import HarnessError

MARKS = {True: ("ok", "green"), False: ("!!", "red"), None: ("--", "dim")}
"""Mark and style of a finding, by its `is_right`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if all is as published, else 2; prints one line per finding."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        dataset = data.get(options.dataset)
        if not hasattr(dataset, "check"):
            raise HarnessError(
                f"there are no published facts to check {options.dataset!r} against; known: {_checkable()}"
            )
        findings = list(dataset.check(options.root))
    except HarnessError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error), style="red")
        return 2
    for finding in findings:
        mark, style = MARKS[finding.is_right]
        console.print(f"{mark} {finding.subject}: {finding.text}", style=style)
    return 2 if any(finding.is_right is False for finding in findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.data", description="Tools for datasets on disk.")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="compare counts, masks and image files with what was published")
    check.add_argument("dataset", metavar="DATASET", help=f"one of {_checkable()}")
    check.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder that contains it")
    return parser


def _checkable() -> str:
    return ", ".join(name for name in data.names() if hasattr(data.get(name), "check"))


if __name__ == "__main__":
    sys.exit(main())
