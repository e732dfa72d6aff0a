"""The token ceiling: the best masks that superpixels allow for the expressions of an image, without any model.

A reader that always selects the right visual tokens predicts the union of superpixels with the highest IoU. Let
superpixel s have a_s pixels inside the target and b_s outside, and let the target have A pixels. A union S has the IoU
sum_S a / (A + sum_S b). If v is the highest IoU, then sum_S (a - v b) <= v A for every S, with equality for the best
unions. The sum is largest for all s with a_s > v b_s. These come first in descending order of a_s / (a_s + b_s), the
share of their pixels inside the target. So the best union is a prefix of this order, and it is enough to compare S
prefixes instead of 2^S unions.

Source: Dinkelbach 1967, https://doi.org/10.1287/mnsc.13.7.492 (maximum of a ratio by the maximum of a difference).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.data.example import Example, union
from harness.data.frame import Frame
from harness.evaluation.metrics import iou


def best_unions(inside: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The union of superpixels with the highest IoU for each target; of equally good ones, that of fewest superpixels.

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


def is_ambiguous(targets: tuple[int, ...], best: np.ndarray) -> bool:
    """Whether the best superpixel of a target is also that of an object that is not a target.

    Args:
        targets: ids of objects, from 1.
        best: (K,) the best superpixel of each object of the image, as of `best_superpixels`.
    """
    is_target = np.zeros(len(best), bool)
    is_target[[k - 1 for k in targets]] = True
    return bool(np.isin(best[is_target & (best >= 0)], best[~is_target]).any())


def restore_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map of the frame (R, R) -> (h, w), without the padding; the nearest pixel of the frame."""
    frame = Frame.of(size, len(labels))
    rows, columns = (
        (2 * np.arange(length) + 1) * resized // (2 * length)
        for length, resized in ((size[0], frame.height), (size[1], frame.width))
    )
    return labels[rows[:, None], columns]


def ceiling_rows(example: Example, labels: np.ndarray) -> Iterator[dict[str, Any]]:
    """One row per expression of an image, with the columns of the samples table that gIoU and FP rate need.

    `is_ambiguous` is None for an expression without a target. Objects that a dataset does not list are not compared, so
    that its share of ambiguous expressions is a lower bound.

    Args:
        labels: (R, R) superpixels of the frame, as tokens represent them, -1 in the padding.
    """
    restored, valid_mask = restore_labels(labels, example.size), example.valid_mask()
    targets = list(dict.fromkeys(expression.targets for expression in example.expressions))
    inside, areas = pixels_of(restored, valid_mask, [example.target_mask(one) for one in targets])
    chosen = best_unions(inside, areas)
    found = {
        one: (int(pixels.sum()), int(pixels[row].sum()), int(areas[row].sum()))
        for one, pixels, row in zip(targets, inside, chosen, strict=True)
    }
    objects = [union([one], example.size) for one in example.objects]
    best = best_superpixels(*pixels_of(restored, valid_mask, objects))
    for number, expression in enumerate(example.expressions):
        target_area, intersection, predicted_area = found[expression.targets]
        whole = target_area + predicted_area - intersection
        yield {
            "image_id": example.image_id,
            "expression_id": number,
            "text": expression.text,
            "family": expression.family,
            "domain": example.domain,
            "iou": float(iou(intersection, whole)),
            "intersection": intersection,
            "union": whole,
            "predicted_area": predicted_area,
            "target_area": target_area,
            "is_ambiguous": is_ambiguous(expression.targets, best) if target_area else None,
        }
