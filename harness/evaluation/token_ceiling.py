"""The token ceiling: the best masks that superpixels allow for the expressions of an image, without any model."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.data.example import Example, union
from harness.data.frame import Frame
from harness.data.overlap import iou
from harness.superpixels.best_unions import best_superpixels, best_unions, pixels_of


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
