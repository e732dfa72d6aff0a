"""Scores by the formulas of four published evaluators, including epsilons and edge cases, for comparison with papers.

They differ from `harness.results.metrics`, and from each other, in the score of an expression without a target, in
whether a rejected expression keeps its mask, in epsilons, and in the denominators of shares. Here an expression has no
target if its mask is empty; ReLA uses the annotation, which differs only for empty polygons.

Source: LISA's `validate` (dvlab-research/LISA@3cb2d43), ReLA's `refer_evaluation.py` (henghuiding/ReLA@3ca9551), GSVA's
`eval_gres` (LeapLabTHU/GSVA@618dc79), LAVT's `test.py` (yz93/LAVT-RIS@1da0af9).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

IGNORED = 255
"""Value of target pixels that are neither object nor background."""

GroundTruth = Literal["union", "lisa_sum"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixel counts of M expressions in evaluation order, without ignored pixels.

    Args:
        intersection, union, predicted, target: (M,) pixels of the teacher-forced mask.
        is_rejected: (M,) bool, whether the model rejected the expression.
        image: (M,) an integer per image; expressions of an image are adjacent.
    """

    intersection: np.ndarray
    union: np.ndarray
    predicted: np.ndarray
    target: np.ndarray
    is_rejected: np.ndarray
    image: np.ndarray

    @classmethod
    def of(
        cls,
        predictions: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        is_rejected: Sequence[bool] | None = None,
        ground_truth: GroundTruth = "union",
        image: Sequence[int] | None = None,
    ) -> "Counts":
        """Counts of masks.

        Args:
            predictions: (h, w) bool each.
            targets: (h, w) integers each: the sum of the polygons of an annotation; `IGNORED` for ignored pixels.
            is_rejected: none by default; an empty mask alone is not a rejection.
            ground_truth: whether a pixel of two polygons belongs to the object ("union") or, as in LISA's loader, to
                the background ("lisa_sum"), so that even a perfect mask scores below 1.
            image: the image of each expression; by default every expression has its own image.
        """
        rows = []
        for predicted, values in zip(predictions, targets, strict=True):
            is_counted = values != IGNORED
            target = is_counted & ((values == 1) if ground_truth == "lisa_sum" else (values > 0))
            prediction = predicted & is_counted
            rows.append([(prediction & target).sum(), (prediction | target).sum(), prediction.sum(), target.sum()])
        columns = np.array(rows, np.int64).reshape(-1, 4).T
        rejected = np.zeros(len(rows), bool) if is_rejected is None else np.asarray(is_rejected, bool)
        images = np.arange(len(rows)) if image is None else np.asarray(image)
        return cls(columns[0], columns[1], columns[2], columns[3], rejected, images)

    @classmethod
    def of_samples(cls, samples: pd.DataFrame) -> "Counts":
        """Counts of one cell in the samples table: teacher-forced masks, and whether [SEG] was generated."""
        predicted, target = samples["predicted_area_teacher_forced"], samples["target_area"]
        intersection = samples["intersection_teacher_forced"]
        columns = (intersection, predicted + target - intersection, predicted, target)
        values = [column.to_numpy(np.int64) for column in columns]
        images, _ = pd.factorize(samples["image_id"])
        return cls(values[0], values[1], values[2], values[3], ~samples["predicted_seg"].to_numpy(bool), images)

    @property
    def has_target(self) -> np.ndarray:
        """(M,) bool."""
        return self.target > 0


def lisa(counts: Counts) -> dict[str, float]:
    """LISA, GLaMM, PixelLM and GSVA's `validate`, in float32: masks are teacher-forced, so nothing can be rejected.

    Sums are rounded as in these releases: first over the expressions of an image, then over images, where the mean IoU
    of an image is multiplied by its number of expressions. LISA orders images by a Python set, which this does not.
    """
    intersection, union = counts.intersection.astype(np.float32), counts.union.astype(np.float32)
    each = intersection / (union + np.float32(1e-5))
    each[union == 0] += 1
    first_of_images = np.flatnonzero(np.diff(counts.image)) + 1
    of_images = [np.split(values, first_of_images) for values in (each, intersection, union)]
    ious = [_sequential_sum(values) / len(values) * len(values) for values in of_images[0] if len(values)]
    intersections, unions = ([_sequential_sum(values) for values in images] for images in of_images[1:])
    return {
        "giou": float(_sequential_sum(np.array(ious)) / (len(each) + 1e-5)),
        "ciou": float(_sequential_sum(np.array(intersections)) / (_sequential_sum(np.array(unions)) + 1e-10)),
    }


def rela(counts: Counts) -> dict[str, float]:
    """ReLA on gRefCOCO: a rejected expression has an empty mask. IoUs and precisions are percentages.

    Precisions are shares of the expressions with a target. As in the release, both accuracies are 0 if every expression
    has a target. Without any target, precisions and target accuracy are NaN.
    """
    has_target, rejected = counts.has_target, counts.is_rejected
    has_both_kinds = not has_target.all()
    intersection = np.where(rejected, 0, counts.intersection)
    union = np.where(rejected & ~has_target, 0, counts.union)
    each = np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)
    each[rejected & ~has_target] = 1
    return {
        "giou": 100 * _mean(each),
        "ciou": 100 * _ratio(intersection.sum(), union.sum()),
        **{f"precision_at_{p}": 100 * _mean(each[has_target] >= p / 100) for p in (70, 80, 90)},
        "no_target_accuracy": _mean(rejected[~has_target]) if has_both_kinds else 0.0,
        "target_accuracy": _mean(~rejected[has_target]) if has_both_kinds else 0.0,
    }


def gsva(counts: Counts, *, counts_hallucinations: bool = True) -> dict[str, float]:
    """GSVA's `eval_gres`, in float32: a rejected expression with a target keeps its mask.

    Args:
        counts_hallucinations: whether cIoU includes predictions for expressions without a target; True on gRefCOCO,
            False on Ref-ZOM.
    """
    has_target, rejected = counts.has_target, counts.is_rejected
    intersection, union = counts.intersection.astype(np.float32), counts.union.astype(np.float32)
    each = np.where(has_target, intersection / (union + np.float32(1e-8)), rejected.astype(np.float32))
    is_counted = has_target | ~rejected if counts_hallucinations else has_target
    return {
        "giou": float(_sequential_sum(each) / (len(each) + 1e-5)),
        "ciou": float(_sequential_sum(intersection[has_target]) / (_sequential_sum(union[is_counted]) + 1e-10)),
        "no_target_accuracy": _mean(rejected[~has_target]),
        "target_accuracy": _mean(~rejected[has_target]),
    }


def lavt(counts: Counts) -> dict[str, float]:
    """LAVT has no expressions without a target: two empty masks score 0; precisions are shares of all expressions."""
    each = np.divide(counts.intersection, counts.union, out=np.zeros(len(counts.union)), where=counts.union > 0)
    return {
        "giou": _mean(each),
        "ciou": _ratio(counts.intersection.sum(), counts.union.sum()),
        **{f"precision_at_{p}": _mean(each >= p / 100) for p in (50, 60, 70, 80, 90)},
    }


PRESETS: Mapping[str, Callable[[Counts], dict[str, float]]] = {"lisa": lisa, "rela": rela, "gsva": gsva, "lavt": lavt}
"""By name; their scores have the names of `harness.results.metrics`."""


def _sequential_sum(values: np.ndarray) -> np.float32:
    """The sequential sum in float32, as in the meters of LISA and GSVA; `np.sum` rounds in another order."""
    return np.cumsum(values, dtype=np.float32)[-1] if len(values) else np.float32(0)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
