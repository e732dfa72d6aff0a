"""A contact sheet of referring expressions: images with the outline of the targets, and the words below."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from harness.data.example import Example, Expression
from harness.data.frame import Frame

SIDE = 448
"""Longest side of an image on the sheet, in pixels."""
_CAPTION = 48  # px under an image
_GAP = 12
_COLUMNS = 4
_OUTLINE = (255, 0, 255)

Shown = tuple[Example, Expression]


def tile(example: Example, expression: Expression) -> Image.Image:
    """One image with its targets' outline, two pixels wide outside the mask, and the expression below."""
    frame = Frame.of(example.size, SIDE)
    pixels = frame.resize(example.image, Image.Resampling.LANCZOS).copy()
    mask = frame.resize(example.mask(expression), Image.Resampling.NEAREST)
    pixels[binary_dilation(mask, iterations=2) & ~mask] = _OUTLINE
    made = Image.new("RGB", (SIDE, SIDE + _CAPTION), "white")
    made.paste(Image.fromarray(pixels), (0, 0))
    draw = ImageDraw.Draw(made)
    size = 18
    while draw.textlength(expression.text, ImageFont.load_default(size)) > SIDE - 8 and size > 8:
        size -= 1
    draw.text((4, SIDE + 4), expression.text, "black", ImageFont.load_default(size))
    draw.text((4, SIDE + 27), f"{expression.family}  {example.image_id}", (110, 110, 110), ImageFont.load_default(14))
    return made


def sheet(shown: Sequence[Shown]) -> Image.Image:
    """All tiles, four in a row."""
    width, height = SIDE + _GAP, SIDE + _CAPTION + _GAP
    rows = -(-len(shown) // _COLUMNS)
    page = Image.new("RGB", (min(len(shown), _COLUMNS) * width + _GAP, rows * height + _GAP), "white")
    for number, pair in enumerate(shown):
        row, column = divmod(number, _COLUMNS)
        page.paste(tile(*pair), (_GAP + column * width, _GAP + row * height))
    return page
