"""Tools for datasets on disk: `python -m harness.data check DATASET` and `python -m harness.data sheet DATASET`.

`check DATASET --root DIR` compares a published dataset with its published facts. `check DATASET --set KEY=VALUE ...`
counts the examples and families of any dataset with these settings. `sheet` renders expressions with their targets.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console

from harness import data
from harness.data.contact_sheet import Shown, sheet
from harness.data.formats.checking import Finding, check_examples
from harness.data.scenes.stable_rng import StableRng
from harness.errors import HarnessError

MARKS = {True: ("ok", "green"), False: ("!!", "red"), None: ("--", "dim")}
"""Mark and style of a finding, by its `is_right`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if the command succeeds and all is as published, else 2."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except HarnessError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error), style="red")
        return 2


def _check(options: argparse.Namespace) -> int:
    """Print one line per finding."""
    dataset = data.get(options.dataset)
    if options.root is not None and options.set:
        raise HarnessError("--set cannot take effect with --root; use one of them")
    if options.root is None:
        found = list(_count(dataset, _config(dataset, options)))
    elif hasattr(dataset, "check"):
        found = list(dataset.check(options.root))
    else:
        raise HarnessError(
            f"there are no published facts to check {options.dataset!r} against; known: {_checkable()}; --set "
            "KEY=VALUE, in place of --root, counts the examples of any dataset"
        )
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for finding in found:
        mark, style = MARKS[finding.is_right]
        console.print(f"{mark} {finding.subject}: {finding.text}", style=style)
    return 2 if any(finding.is_right is False for finding in found) else 0


def _count(dataset: ModuleType, config: Any) -> Iterator[Finding]:
    for split in config.splits:
        yield from check_examples(f"{config.name} {split}", dataset.load(config, split))


def _sheet(options: argparse.Namespace) -> int:
    """Write random expressions of one split or of all."""
    dataset = data.get(options.dataset)
    config = _config(dataset, options)
    pairs: list[Shown] = [
        (example, expression)
        for split in ([options.split] if options.split else config.splits)
        for example in dataset.load(config, split)
        for expression in example.expressions
    ]
    if not pairs:
        raise HarnessError(f"{options.dataset} has no expressions with these settings; choose other ones")
    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise HarnessError(f"--out {options.out} has no suffix of an image; use .png, .jpg or .webp")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(StableRng((options.seed,)).shuffled(pairs)[: options.count]).save(options.out)
    return 0


def _config(dataset: ModuleType, options: argparse.Namespace) -> Any:
    """The configuration with the settings of the command line, whose keys may have dots.

    Raises:
        HarnessError: a setting is malformed, missing, unknown or invalid.
    """
    settings: dict[str, Any] = {}
    for text in options.set:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise HarnessError(f"--set {text} is no setting; write KEY=VALUE, such as --set images=val2017")
        *path, last = key.split(".")
        target = settings
        for part in path:
            inner = target.setdefault(part, {})
            if not isinstance(inner, dict):
                raise HarnessError(f"--set {text}: {part} is also set to {inner!r}; remove one of the two settings")
            target = inner
        try:
            target[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise HarnessError(f"--set {text}: the value is no valid YAML; quote it") from None
    try:
        return dataset.Config.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "settings"
        known = ", ".join(name for name in dataset.Config.model_fields if name != "name")
        raise HarnessError(
            f"{options.dataset}: {key}: {first['msg']}; set it by --set {key}=VALUE; known: {known}"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.data", description="Tools for datasets on disk.")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="compare a dataset with what was published, or count its examples")
    check.add_argument("dataset", metavar="DATASET", help=f"with --root, one of {_checkable()}; else any")
    check.add_argument("--root", type=Path, metavar="DIR", help="folder of a published dataset; not with --set")
    check.set_defaults(run=_check)
    sheets = commands.add_parser("sheet", help="render random expressions with the outlines of their targets")
    sheets.add_argument("dataset", metavar="DATASET", help=f"one of {', '.join(data.names())}")
    sheets.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="file to write")
    sheets.add_argument("--split", help="split of the dataset; all by default")
    sheets.add_argument("--count", type=_positive, default=20, help="number of expressions")
    sheets.add_argument("--seed", type=int, default=0, help="of the choice of expressions")
    sheets.set_defaults(run=_sheet)
    for command in (check, sheets):
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of `data`; can be repeated"
        )
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few; at least 1 is required")
    return int(text)


def _checkable() -> str:
    return ", ".join(name for name in data.names() if hasattr(data.get(name), "check"))


if __name__ == "__main__":
    sys.exit(main())
