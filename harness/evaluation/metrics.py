"""Pixel counts and overlaps of masks; `harness.results.metrics` computes the scores of a cell from them."""

import math
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from harness.data.example import Example, encode
from harness.data.overlap import iou


def count(predictions: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Pixel counts of each pair of bool masks (..., h, w), by column of the samples table."""
    intersection, predicted_area, target_area = map(_areas, (predictions & targets, predictions, targets))
    return {
        "intersection": intersection,
        "union": predicted_area + target_area - intersection,
        "predicted_area": predicted_area,
        "target_area": target_area,
    }


def _areas(masks: np.ndarray) -> np.ndarray:
    """Pixels of each bool mask (..., h, w)."""
    *shape, height, width = masks.shape
    # `count_nonzero` of a contiguous mask uses vector instructions; a sum over axes converts each pixel to an integer.
    areas = [np.count_nonzero(mask) for mask in masks.reshape(-1, height, width)]
    return np.array(areas, np.int64).reshape(shape)


def mean_best_overlap(labels: np.ndarray, objects: np.ndarray) -> float:
    """Mean over objects of the best IoU that a single superpixel has with the object.

    Args:
        labels: (h, w) superpixels, ids 0..S-1.
        objects: (h, w) id map; 0 is background and is left out.

    Returns:
        0 to 1; NaN without objects.
    """
    joint = np.zeros((int(labels.max()) + 1, int(objects.max()) + 1), np.int64)
    np.add.at(joint, (labels, objects), 1)
    areas = joint.sum(axis=0)
    best = iou(joint, joint.sum(axis=1, keepdims=True) + areas - joint).max(axis=0)
    return float(best[1:][areas[1:] > 0].mean()) if (areas[1:] > 0).any() else math.nan


def random_object_giou(examples: Sequence[Example]) -> float:
    """Expected gIoU of predicting one visible object, chosen uniformly, for each expression.

    In an image without objects, the prediction is the empty mask.

    Returns:
        0 to 1; NaN without expressions, and NaN if an image with expressions lists only objects that they refer to,
        because the only object of an image would then always be correct.
    """
    expected = []
    for example in (one for one in examples if one.expressions):
        if not example.lists_all_objects:
            return math.nan
        visible = [one for one in example.objects if coco_mask.area(one)]
        for expression in example.expressions:
            target = encode(example.mask(expression))
            expected.append(float(coco_mask.iou(visible, [target], [0]).mean()) if visible else 1.0)
    return float(np.mean(expected)) if expected else math.nan
