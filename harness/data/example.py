"""What every dataset yields: an image, the referring expressions about it, and the mask each one refers to."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Expression:
    """A referring expression and the objects that it refers to.

    Attributes:
        text: lower case words, separated by single spaces.
        family: the kind of expression, by which scores are grouped; "all" where a dataset has no families.
        targets: ids in `Example.objects`, ascending; empty when the expression refers to nothing in the image.
    """

    text: str
    family: str
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What is known about one object beyond its mask, for grouping scores.

    Attributes:
        elongation: ratio of the principal axes, at least 1.
        occlusion: share of the object hidden behind others, 0 to 1.
        area: visible pixels.
    """

    elongation: float
    occlusion: float
    area: int


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image with its referring expressions.

    Attributes:
        image_id: unique and stable across runs.
        image: (h, w, 3) uint8 RGB.
        objects: (h, w) integer id map: 0 is background, k > 0 the visible pixels of object k.
        expressions: in the order in which results number them.
        attributes: facts about object k at position k - 1; empty where a dataset has none.
    """

    image_id: str
    image: np.ndarray
    objects: np.ndarray
    expressions: tuple[Expression, ...]
    attributes: tuple[ObjectFacts, ...] = ()

    def mask(self, expression: Expression) -> np.ndarray:
        """The union of the visible masks of the expression's targets, (h, w) bool."""
        return np.isin(self.objects, expression.targets)
