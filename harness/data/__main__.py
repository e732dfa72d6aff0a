"""`python -m harness.data check DATASET --root DIR`: whether a dataset is there, whole, and what was published."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness import data
from harness.errors import HarnessError

MARKS = {True: ("ok", "green"), False: ("!!", "red"), None: ("--", "dim")}
"""How a finding is shown, by whether it is right."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where all is as published, or 2 with a sentence for each thing that is not."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        dataset = data.get(options.dataset)
        if not hasattr(dataset, "check"):
            raise HarnessError(f"there is nothing published to hold {options.dataset!r} against; known: {_checkable()}")
        findings = list(dataset.check(options.root))
    except HarnessError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error), style="red")
        return 2
    for finding in findings:
        mark, style = MARKS[finding.is_right]
        console.print(f"{mark} {finding.subject}: {finding.text}", style=style)
    return 2 if any(finding.is_right is False for finding in findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.data", description="Looks after datasets on disk.")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="counts, masks and image files, held against what was published")
    check.add_argument("dataset", metavar="DATASET", help=f"one of {_checkable()}")
    check.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder that holds it")
    return parser


def _checkable() -> str:
    return ", ".join(name for name in data.names() if hasattr(data.get(name), "check"))


if __name__ == "__main__":
    sys.exit(main())
