"""The objects of one photograph as the rules use them: categories, areas and positions.

Lengths are shares of the longest side of the image, as in the frame of the vision encoder, so that a margin means the
same for photographs of every size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from harness.data.coco_rules.nouns import are_alike
from harness.data.example import ImageFile, Rle


class Box(NamedTuple):
    """Bounds of a mask, in shares of the longest side."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Horizontal extent."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Vertical extent."""
        return self.bottom - self.top


@dataclass(frozen=True, slots=True)
class Instance:
    """One labelled object.

    Attributes:
        id: its number in `Example.objects`, from 1.
        area: visible pixels, as a share of the image.
        box: bounds of the visible pixels.
        centroid: mean (x, y) of the visible pixels.
        is_cut: whether it touches the edge of the image.
        largest_part: share of its pixels in the largest connected part.
    """

    id: int
    category: str
    area: float
    box: Box
    centroid: tuple[float, float]
    is_cut: bool
    largest_part: float

    @classmethod
    def of(cls, number: int, category: str, mask: Rle) -> "Instance":
        """Measures a mask that has at least one pixel."""
        height, width = mask["size"]
        side = max(height, width)
        left, top, box_width, box_height = (float(value) for value in coco_mask.toBbox(mask))
        right, bottom = left + box_width, top + box_height
        pixels = coco_mask.decode(mask)[int(top) : int(bottom), int(left) : int(right)]
        area = int(pixels.sum())
        x = left + float(pixels.sum(0) @ (np.arange(pixels.shape[1]) + 0.5)) / area
        y = top + float(pixels.sum(1) @ (np.arange(pixels.shape[0]) + 0.5)) / area
        box = Box(left / side, top / side, right / side, bottom / side)
        is_cut = min(left, top, width - right, height - bottom) <= 1
        parts, _ = ndimage.label(pixels)
        largest_part = int(np.bincount(parts.ravel())[1:].max()) / area
        return cls(number, category, area / (height * width), box, (x / side, y / side), is_cut, largest_part)


class ImageFacts:
    """The labelled objects of an image.

    Args:
        instances: objects with exact masks.
        uncertain: categories with a crowd region or an annotation without a mask, so that objects cannot be counted.
    """

    def __init__(self, instances: Sequence[Instance], uncertain: frozenset[str] = frozenset()) -> None:
        self.instances = tuple(instances)
        self.uncertain = uncertain

    @cached_property
    def present(self) -> frozenset[str]:
        """The categories of all objects, crowds included."""
        return self.uncertain | {one.category for one in self.instances}

    def by_category(self) -> dict[str, list[Instance]]:
        """The objects of each category, by name, where no doubt about the number of objects of this name is possible.

        Left out are categories with a crowd, and those with objects of another category that may be called by the name.
        """
        found: dict[str, list[Instance]] = {}
        for one in self.instances:
            found.setdefault(one.category, []).append(one)
        return {
            name: found[name]
            for name in sorted(found)
            if name not in self.uncertain and not any(are_alike(name, other) for other in self.present)
        }


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """A photograph with its labels; the mask of instance k is at position k - 1 of `objects`."""

    image_id: str
    picture: ImageFile
    objects: tuple[Rle, ...]
    facts: ImageFacts
