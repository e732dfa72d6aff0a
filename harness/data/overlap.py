"""Overlap of masks."""

import numpy as np
from numpy.typing import ArrayLike


def iou(intersection: ArrayLike, union: ArrayLike) -> np.ndarray:
    """Intersection over union; 1 where both masks are empty."""
    intersection, union = np.asarray(intersection, np.float64), np.asarray(union, np.float64)
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), 1.0)
