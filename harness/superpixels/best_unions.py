"""The union of superpixels that has the highest IoU with a target.

A model that always selects the right visual tokens predicts the union of superpixels with the highest IoU. Let
superpixel s have a_s pixels inside the target and b_s outside, and let the target have A pixels. A union S has the IoU
sum_S a / (A + sum_S b). If v is the highest IoU, then sum_S (a - v b) <= v A for every S, with equality for the best
unions. The sum is largest for all s with a_s > v b_s. These come first in descending order of a_s / (a_s + b_s), the
share of their pixels inside the target. So the best union is a prefix of this order, and it is enough to compare S
prefixes instead of 2^S unions.

Source: Dinkelbach 1967, https://doi.org/10.1287/mnsc.13.7.492 (maximum of a ratio by the maximum of a difference).
"""

import numpy as np

from harness.data.overlap import iou


def best_unions(inside: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The union of superpixels with the highest IoU for each target; of equal ones, that with the fewest superpixels.

    Args:
        inside: (E, S) pixels of each superpixel inside each target; together they cover the targets.
        areas: (S,) pixels of each superpixel.

    Returns:
        (E, S) bool; nothing is selected for an empty target.
    """
    shares = np.divide(inside, areas, out=np.zeros(inside.shape), where=areas > 0)
    order = np.argsort(-shares, axis=1, kind="stable")
    intersections = np.take_along_axis(inside, order, axis=1).cumsum(axis=1)
    predicted = areas[order].cumsum(axis=1)
    targets = inside.sum(axis=1, keepdims=True)
    best = iou(intersections, targets + predicted - intersections).argmax(axis=1)
    ranks = np.argsort(order, axis=1)
    return (ranks <= best[:, None]) & (targets > 0)


def pixels_of(labels: np.ndarray, valid_mask: np.ndarray, masks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Valid pixels of each superpixel inside each of E masks, (E, S), and in total, (S,)."""
    count = int(labels.max()) + 1
    areas = np.bincount(labels[valid_mask], minlength=count)
    inside = [np.bincount(labels[mask & valid_mask], minlength=count) for mask in masks]
    return np.array(inside, np.int64).reshape(-1, count), areas


def best_superpixels(inside: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(K,) the superpixel with the highest IoU with each of K objects, -1 for an object without pixels.

    Args:
        inside, areas: as in `best_unions`, of objects instead of targets.
    """
    objects = inside.sum(axis=1, keepdims=True)
    best = iou(inside, objects + areas - inside).argmax(axis=1)
    return np.where(objects[:, 0] > 0, best, -1)
