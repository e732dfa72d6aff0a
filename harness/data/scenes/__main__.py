"""`python -m harness.data.scenes --sheet sheet.png`: a contact sheet for visual inspection of the benchmark.

Each tile shows an image, the outline of one expression's target in magenta, and the expression with its family.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.data.example import Example, Expression
from harness.data.scenes import DOMAINS, SPLITS, Config, load
from harness.data.scenes.scene import SIDE

_ZOOM = 2
_CAPTION = 48  # px under an image
_GAP = 12
_COLUMNS = 4


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels just outside the mask, two pixels wide at the sheet's zoom."""
    wide = np.pad(mask.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1), 2)
    grown = wide.copy()
    for step in (-2, -1, 1, 2):
        grown |= np.roll(wide, step, axis=0) | np.roll(wide, step, axis=1)
    return (grown & ~wide)[2:-2, 2:-2]


def _tile(example: Example, expression: Expression) -> Image.Image:
    """One image with the target's outline, and the expression below."""
    pixels = example.image.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
    pixels[_outline(example.mask(expression))] = (255, 0, 255)
    tile = Image.new("RGB", (SIDE * _ZOOM, SIDE * _ZOOM + _CAPTION), "white")
    tile.paste(Image.fromarray(pixels), (0, 0))
    draw = ImageDraw.Draw(tile)
    size = 18
    while draw.textlength(expression.text, ImageFont.load_default(size)) > SIDE * _ZOOM - 8 and size > 8:
        size -= 1
    draw.text((4, SIDE * _ZOOM + 4), expression.text, "black", ImageFont.load_default(size))
    draw.text((4, SIDE * _ZOOM + 27), expression.family, (110, 110, 110), ImageFont.load_default(14))
    return tile


def _balance_families(examples: Sequence[Example]) -> Iterator[tuple[Example, Expression]]:
    """One expression per image, from the family with the fewest tiles so far."""
    shown: Counter[str] = Counter()
    for example in examples:
        expression = min(example.expressions, key=lambda one: shown[one.family])
        shown[expression.family] += 1
        yield example, expression


def sheet(config: Config, split: str, count: int) -> Image.Image:
    """The first images of a split, four in a row."""
    tiles = [_tile(*shown) for shown in _balance_families(load(config, split)[:count])]
    width, height = tiles[0].width + _GAP, tiles[0].height + _GAP
    rows = -(-len(tiles) // _COLUMNS)
    page = Image.new("RGB", (min(len(tiles), _COLUMNS) * width + _GAP, rows * height + _GAP), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, _COLUMNS)
        page.paste(tile, (_GAP + column * width, _GAP + row * height))
    return page


def main() -> None:
    """Write the sheet of the command line."""
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
    sheet(config, options.split, options.count).save(options.sheet)


if __name__ == "__main__":
    main()
