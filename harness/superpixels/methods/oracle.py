"""Oracle: the visible masks of the objects, and the parts of the background; the upper bound of any source."""

import numpy as np
from scipy import ndimage

from harness.data.example import Example
from harness.errors import HarnessError
from harness.superpixels.partition import compact, fill_uncovered
from harness.superpixels.source import SourceConfig


class Config(SourceConfig):
    """`count` is only a maximum; if there are too many parts of background, the smallest become one superpixel."""


def segment(config: Config, example: Example) -> np.ndarray:
    """(h, w) int16 labels; every object is exactly one superpixel.

    Raises:
        HarnessError: more objects than superpixels.
    """
    objects = example.id_map()
    num_objects = len(np.unique(objects[objects > 0]))
    background = objects == 0
    parts, num_parts = ndimage.label(background)
    allowed = config.count - num_objects
    if allowed < min(num_parts, 1):
        raise HarnessError(
            f"superpixels.count={config.count}, but {example.image_id} has {num_objects} objects and a background; "
            f"use at least {num_objects + 1}"
        )
    if num_parts <= allowed:
        return fill_uncovered(objects - 1)
    sizes = np.bincount(parts[background], minlength=num_parts + 1)
    largest = np.argsort(-sizes, kind="stable")[: allowed - 1]
    small = background & ~np.isin(parts, largest)
    return compact(np.where(small, -1, np.where(background, -1 - parts, objects)))
