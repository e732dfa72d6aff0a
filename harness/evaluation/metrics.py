"""From pixel counts of single expressions to the scores of a cell.

Decided, because the codebases of the field differ here:

- every scored expression counts once, with or without a target; sums run over expressions, in whole pixels, without
  an epsilon;
- empty prediction and empty target agree: their IoU is 1; only one of them empty: 0;
- a model that rejects an expression predicts the empty mask, so "rejected" and "empty" are the same thing here;
- `precision_at_*`, `wrong_object_rate` and `target_accuracy` are shares of the expressions that have a target, and a
  threshold is reached at equality;
- a metric with no applicable samples is NaN, never 0.

Source: ReLA, https://arxiv.org/abs/2306.00968 (gIoU, cIoU, no-target and target accuracy, precision at a threshold).
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pycocotools import mask as coco_mask

from harness.data.example import Example, encode

THRESHOLDS = (50, 60, 70, 80, 90)
"""Percent of IoU at which precision is reported; below the first, a non-empty answer is the wrong object."""


def count(predictions: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Pixels of each pair of bool masks (..., h, w), by the column names of the samples table."""
    pixels = (-2, -1)
    return {
        "intersection": (predictions & targets).sum(pixels),
        "union": (predictions | targets).sum(pixels),
        "predicted_area": predictions.sum(pixels),
        "target_area": targets.sum(pixels),
    }


def iou(intersection: ArrayLike, union: ArrayLike) -> np.ndarray:
    """Intersection over union; 1 where both masks are empty."""
    intersection, union = np.asarray(intersection, np.float64), np.asarray(union, np.float64)
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), 1.0)


def mean_best_overlap(labels: np.ndarray, objects: np.ndarray) -> float:
    """How well single superpixels stand for objects: the mean over objects of the best IoU that any of them has.

    Args:
        labels: (h, w) superpixels, ids 0..S-1.
        objects: (h, w) id map, 0 is background, which does not count.

    Returns:
        0 to 1; NaN without objects.
    """
    joint = np.zeros((int(labels.max()) + 1, int(objects.max()) + 1), np.int64)
    np.add.at(joint, (labels, objects), 1)
    areas = joint.sum(axis=0)
    best = iou(joint, joint.sum(axis=1, keepdims=True) + areas - joint).max(axis=0)
    return float(best[1:][areas[1:] > 0].mean()) if (areas[1:] > 0).any() else math.nan


def score(samples: pd.DataFrame) -> dict[str, float]:
    """All quality columns of a result row, from the rows of one cell in the samples table: of masks and of answers."""
    answers = samples.reindex(columns=["scoring", "score"])
    is_answered = answers["scoring"].notna()
    scores = {} if is_answered.any() and is_answered.all() else score_masks(samples[~is_answered])
    return scores | {str(scoring): _mean(rows["score"]) for scoring, rows in answers.groupby("scoring", sort=True)}


def score_masks(samples: pd.DataFrame) -> dict[str, float]:
    """The quality columns that speak of expressions.

    - `giou`: mean of per-expression IoU (not generalised-box IoU); `giou_teacher_forced`: the same with [SEG] given.
    - `ciou`: sum of intersections over sum of unions.
    - `fp_rate`: share of predicted pixels outside the target; `fn_rate`: share of target pixels not predicted.
    - `wrong_object_rate`: share of targeted expressions with a non-empty prediction of IoU under 0.5.
    - `no_target_accuracy`: share of expressions without a target for which nothing is predicted; `target_accuracy`:
      share of those with one for which something is.
    - `precision_at_<percent>`: share of targeted expressions with at least that IoU.
    - `giou_<family>`, `fp_rate_<family>`: of the families that occur.
    """
    has_target = samples["target_area"] > 0
    is_empty = samples["predicted_area"] == 0
    targeted = samples["iou"][has_target]
    scores = {
        "giou": _mean(samples["iou"]),
        "giou_teacher_forced": _mean(samples["iou_teacher_forced"]),
        "ciou": float(iou(samples["intersection"].sum(), samples["union"].sum())) if len(samples) else math.nan,
        "fp_rate": _share_outside(samples["predicted_area"], samples["intersection"]),
        "fn_rate": _share_outside(samples["target_area"], samples["intersection"]),
        "wrong_object_rate": _mean((targeted < THRESHOLDS[0] / 100) & ~is_empty[has_target]),
        "no_target_accuracy": _mean(is_empty[~has_target]),
        "target_accuracy": _mean(~is_empty[has_target]),
    }
    scores |= {f"precision_at_{percent}": _mean(targeted >= percent / 100) for percent in THRESHOLDS}
    for family, rows in samples.groupby("family", sort=True):
        scores[f"giou_{family}"] = _mean(rows["iou"])
        scores[f"fp_rate_{family}"] = _share_outside(rows["predicted_area"], rows["intersection"])
    return scores


def random_object_giou(examples: Sequence[Example]) -> float:
    """Expected gIoU of answering each expression with one visible object, drawn uniformly: chance for a perfect cutter.

    In an image without objects there is nothing to draw, and the empty mask is right.

    Returns:
        0 to 1; NaN without expressions, and where an image with expressions lists only objects that they refer to:
        drawn among these, an image's only object would always be right.
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


def _mean(values: pd.Series) -> float:
    return float(values.mean()) if len(values) else math.nan


def _share_outside(area: pd.Series, intersection: pd.Series) -> float:
    """Share of the area that lies outside the intersection; NaN without any area."""
    total = area.sum()
    return float((total - intersection.sum()) / total) if total else math.nan
