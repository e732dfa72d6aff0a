"""`python -m harness.superpixels IMAGE... --out FILE.png`: superpixels at several granularities, side by side.

The columns are the named granularities of the source if it has them, else several counts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from harness import superpixels
from harness.cache.superpixel_labels import segment
from harness.data.example import Example, read_image
from harness.data.frame import Frame
from harness.errors import HarnessError
from harness.superpixels.source import Source, SourceConfig

COUNTS = (12, 24, 48, 96)
_ZOOM = 2
"""Pixels of the sheet per pixel of the image, so that outlines are thin."""
_GAP = 12
_CAPTION = 30  # px under a tile
_FONT = ImageFont.load_default(18)
_TINT = 0.55
"""Opacity of a superpixel's mean colour over its pixels."""


def granularities(source: Source, model: str | None) -> dict[str, SourceConfig]:
    """The configuration of each column by its title."""
    if "granularity" not in source.Config.model_fields:
        return {f"count={count}": source.Config(count=count) for count in COUNTS}
    overrides = {} if model is None else {"model": model}
    names = source.Config.model_json_schema()["properties"]["granularity"]["enum"]
    return {name: source.Config.model_validate({"granularity": name, **overrides}) for name in names}


def tile(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image with every superpixel tinted by its mean colour and outlined in white on black."""
    area = np.bincount(labels.ravel())
    colours = np.stack([np.bincount(labels.ravel(), image[..., c].ravel()) / area for c in range(3)], axis=-1)
    labels = labels.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
    tinted = (_TINT * colours[labels] + (1 - _TINT) * _zoomed(image)).astype(np.uint8)
    tinted[find_boundaries(labels, mode="thick")] = 0
    tinted[find_boundaries(labels, mode="inner")] = 255
    return tinted


def _zoomed(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((_ZOOM * width, _ZOOM * height), Image.Resampling.BICUBIC))


def sheet(images: dict[str, np.ndarray], source: Source, columns: dict[str, SourceConfig]) -> Image.Image:
    """One row per image: the image, then one tile per granularity, each with its title and number of superpixels."""
    rows = []
    for name, image in images.items():
        example = Example(name, image, (), ())
        row = [(_zoomed(image), name)]
        for title, config in columns.items():
            labels = segment(source.name, config, example).astype(np.int64)
            row.append((tile(image, labels), f"{title}: {labels.max() + 1} superpixels"))
        rows.append(row)
    width = _ZOOM * max(image.shape[1] for image in images.values()) + _GAP
    heights = [row[0][0].shape[0] + _CAPTION + _GAP for row in rows]
    page = Image.new("RGB", (len(rows[0]) * width + _GAP, sum(heights) + _GAP), "white")
    draw = ImageDraw.Draw(page)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (pixels, caption) in enumerate(row):
            left = _GAP + column * width
            page.paste(Image.fromarray(pixels), (left, top))
            draw.text((left, top + pixels.shape[0] + 3), caption, "black", _FONT)
        top += height
    return page


def read(path: Path, side: int) -> np.ndarray:
    """(h, w, 3) uint8, upright, with a longest side of `side` pixels.

    Raises:
        DataError: the file is missing, or no valid image.
    """
    image = read_image(path)
    return Frame.of(image.shape[:2], side).resize(image, Image.Resampling.LANCZOS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sheet of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.superpixels", description="Render the superpixels of images at several granularities."
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="any image file that Pillow supports")
    parser.add_argument("--out", type=Path, required=True, help="file to write, e.g. superpixels.png")
    parser.add_argument("--source", choices=[name for name in superpixels.names() if name != "oracle"], default="sam")
    parser.add_argument("--model", help="sam only: weight name of the SAM that proposes masks")
    parser.add_argument("--side", type=int, default=224, help="longest side of the resized image, in pixels")
    options = parser.parse_args(arguments)
    source = superpixels.get(options.source)
    if options.model is not None and "model" not in source.Config.model_fields:
        parser.error(f"--model cannot take effect, {options.source} uses no model; remove it")
    try:
        images = {path.name: read(path, options.side) for path in options.images}
        page = sheet(images, source, granularities(source, options.model))
    except HarnessError as error:
        parser.error(str(error))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    page.save(options.out)


if __name__ == "__main__":
    main()
