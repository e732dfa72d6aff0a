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
from harness.data.example import ImageFile, Licence, Rle


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


@dataclass(frozen=True, eq=False)
class Instance:
    """One labelled object; its mask is decoded only for the attributes that need its pixels.

    Args:
        id: its number in `Example.objects`, from 1.
        mask: its visible pixels, at least one.
    """

    id: int
    category: str
    mask: Rle

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the image in pixels."""
        height, width = self.mask["size"]
        return height, width

    @cached_property
    def bounds(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels; right and bottom are exclusive."""
        left, top, width, height = (int(value) for value in coco_mask.toBbox(self.mask))
        return left, top, left + width, top + height

    @cached_property
    def box(self) -> Box:
        """The bounds in shares of the longest side."""
        return Box(*(value / max(self.size) for value in self.bounds))

    @cached_property
    def area(self) -> float:
        """Pixels as a share of the image."""
        height, width = self.size
        return int(coco_mask.area(self.mask)) / (height * width)

    @cached_property
    def centroid(self) -> tuple[float, float]:
        """Mean (x, y) of the pixels."""
        (left, top, _, _), pixels = self.bounds, self._pixels()
        x = left + pixels.sum(0) @ (np.arange(pixels.shape[1]) + 0.5) / pixels.sum()
        y = top + pixels.sum(1) @ (np.arange(pixels.shape[0]) + 0.5) / pixels.sum()
        return float(x) / max(self.size), float(y) / max(self.size)

    @property
    def is_cut(self) -> bool:
        """Whether it touches the edge of the image."""
        (left, top, right, bottom), (height, width) = self.bounds, self.size
        return min(left, top, width - right, height - bottom) <= 1

    @cached_property
    def largest_part(self) -> float:
        """Share of its pixels in the largest connected part."""
        parts, _ = ndimage.label(self._pixels())
        return int(np.bincount(parts.ravel())[1:].max()) / int(coco_mask.area(self.mask))

    def _pixels(self) -> np.ndarray:
        """The mask within its bounds, (h, w) uint8."""
        left, top, right, bottom = self.bounds
        return np.asarray(coco_mask.decode(self.mask)[top:bottom, left:right])


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
        """The objects of each category whose number of objects is certain, by name.

        Categories with a crowd are left out, and so are those whose name may be used for an object of another category
        in the image.
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
    """A photograph with its labels."""

    image_id: str
    picture: ImageFile
    facts: ImageFacts
    licence: Licence | None = None

    @property
    def objects(self) -> tuple[Rle, ...]:
        """The masks of its instances."""
        return tuple(one.mask for one in self.facts.instances)
