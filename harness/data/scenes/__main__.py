"""`python -m harness.data.scenes --sheet sheet.png`: a contact sheet for visual inspection of the benchmark.

Each tile shows an image, the outline of one expression's target in magenta, and the expression with its family.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.data.contact_sheet import Shown, sheet
from harness.data.example import Example
from harness.data.scenes import DOMAINS, SPLITS, Config, load


def _balance_families(examples: Sequence[Example]) -> Iterator[Shown]:
    """One expression per image, from the family with the fewest tiles so far."""
    shown: Counter[str] = Counter()
    for example in examples:
        expression = min(example.expressions, key=lambda one: shown[one.family])
        shown[expression.family] += 1
        yield example, expression


def main() -> None:
    """Write the sheet of the command line: the first images of a split."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.data.scenes", description="Render a contact sheet of scenes."
    )
    parser.add_argument("--sheet", type=Path, required=True, help="file to write, e.g. sheet.png")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--domain", choices=tuple(DOMAINS), default="studio")
    parser.add_argument("--count", type=int, default=12, help="number of images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.count < 1:
        parser.error("--count must be at least 1")
    config = Config(domains=(options.domain,), seed=options.seed)
    sheet(list(_balance_families(load(config, options.split)[: options.count]))).save(options.sheet)


if __name__ == "__main__":
    main()
