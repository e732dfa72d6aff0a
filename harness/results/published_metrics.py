"""Scores as four published evaluators compute them, epsilons and edge cases included, to be put beside their numbers.

Ours are in `harness.evaluation.metrics`; these differ from them, and from one another, in what an expression without a
target counts, whether a rejected expression keeps its mask, where epsilons stand, and what a share is a share of. Here
an expression has no target where its mask is empty; ReLA goes by the annotation, the same but for empty polygons.

Source: LISA's `validate` (dvlab-research/LISA@3cb2d43), ReLA's `refer_evaluation.py` (henghuiding/ReLA@3ca9551), GSVA's
`eval_gres` (LeapLabTHU/GSVA@618dc79), LAVT's `test.py` (yz93/LAVT-RIS@1da0af9).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

IGNORED = 255
"""Value of a pixel of a target that is neither object nor background."""

GroundTruth = Literal["union", "lisa_sum"]


@dataclass(frozen=True, slots=True)
class Counts:
    """M expressions, in the order in which an evaluator meets them; ignored pixels are in no count.

    Args:
        intersection, union, predicted, target: (M,) pixels of the mask as drawn, whatever the answer was.
        is_rejected: (M,) bool, the model said that nothing is meant.
        image: (M,) integers that differ between images; expressions of an image stand together.
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
            targets: (h, w) integers each: the sum of an annotation's polygons, `IGNORED` where a pixel is not judged.
            is_rejected: none by default; a mask that is empty is no rejection.
            ground_truth: what a pixel of two polygons is: the object's ("union"), or, as in LISA's loader, neither the
                object's nor ignored, so that even a perfect mask scores under 1.
            image: the image of each expression; an image each by default.
        """
        rows = []
        for predicted, values in zip(predictions, targets, strict=True):
            is_judged = values != IGNORED
            target = is_judged & ((values == 1) if ground_truth == "lisa_sum" else (values > 0))
            drawn = predicted & is_judged
            rows.append([(drawn & target).sum(), (drawn | target).sum(), drawn.sum(), target.sum()])
        columns = np.array(rows, np.int64).reshape(-1, 4).T
        rejected = np.zeros(len(rows), bool) if is_rejected is None else np.asarray(is_rejected, bool)
        images = np.arange(len(rows)) if image is None else np.asarray(image)
        return cls(columns[0], columns[1], columns[2], columns[3], rejected, images)

    @classmethod
    def of_samples(cls, samples: pd.DataFrame) -> "Counts":
        """Counts of the rows of one cell in the samples table: the masks drawn with [SEG] given, and the answers."""
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
    """LISA, GLaMM, PixelLM and GSVA's `validate`, in float32: the answer is given, so nothing can be rejected.

    Sums are rounded as there, to the last digit: first over the expressions of an image, then over images, where the
    mean IoU of an image is multiplied by their number again. LISA orders images by a Python set, which this does not.
    """
    intersection, union = counts.intersection.astype(np.float32), counts.union.astype(np.float32)
    each = intersection / (union + np.float32(1e-5))
    each[union == 0] += 1
    first_of_images = np.flatnonzero(np.diff(counts.image)) + 1
    of_images = [np.split(values, first_of_images) for values in (each, intersection, union)]
    ious = [_added_up(values) / len(values) * len(values) for values in of_images[0] if len(values)]
    intersections, unions = ([_added_up(values) for values in images] for images in of_images[1:])
    return {
        "giou": float(_added_up(np.array(ious)) / (len(each) + 1e-5)),
        "ciou": float(_added_up(np.array(intersections)) / (_added_up(np.array(unions)) + 1e-10)),
    }


def rela(counts: Counts) -> dict[str, float]:
    """ReLA on gRefCOCO: a rejected expression has no mask. IoUs and precisions in percent, accuracies as fractions.

    Precisions are shares of the expressions that have a target, and both accuracies are 0 where every expression has
    one, as in the release; where it divides by zero, for want of any target, precisions and target accuracy are NaN.
    """
    has_target, rejected = counts.has_target, counts.is_rejected
    is_told_apart = not has_target.all()
    intersection = np.where(rejected, 0, counts.intersection)
    union = np.where(rejected & ~has_target, 0, counts.union)
    each = np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)
    each[rejected & ~has_target] = 1
    return {
        "giou": 100 * _mean(each),
        "ciou": 100 * _ratio(intersection.sum(), union.sum()),
        **{f"precision_at_{p}": 100 * _mean(each[has_target] >= p / 100) for p in (70, 80, 90)},
        "no_target_accuracy": _mean(rejected[~has_target]) if is_told_apart else 0.0,
        "target_accuracy": _mean(~rejected[has_target]) if is_told_apart else 0.0,
    }


def gsva(counts: Counts, *, counts_hallucinations: bool = True) -> dict[str, float]:
    """GSVA's `eval_gres`, in float32: a rejected expression with a target keeps its mask.

    Args:
        counts_hallucinations: whether what is predicted for no target enters cIoU; so on gRefCOCO, not on Ref-ZOM.
    """
    has_target, rejected = counts.has_target, counts.is_rejected
    intersection, union = counts.intersection.astype(np.float32), counts.union.astype(np.float32)
    each = np.where(has_target, intersection / (union + np.float32(1e-8)), rejected.astype(np.float32))
    is_counted = has_target | ~rejected if counts_hallucinations else has_target
    return {
        "giou": float(_added_up(each) / (len(each) + 1e-5)),
        "ciou": float(_added_up(intersection[has_target]) / (_added_up(union[is_counted]) + 1e-10)),
        "no_target_accuracy": _mean(rejected[~has_target]),
        "target_accuracy": _mean(~rejected[has_target]),
    }


def lavt(counts: Counts) -> dict[str, float]:
    """LAVT: knows no expression without a target, so two empty masks score 0; precisions are shares of all."""
    each = np.divide(counts.intersection, counts.union, out=np.zeros(len(counts.union)), where=counts.union > 0)
    return {
        "giou": _mean(each),
        "ciou": _ratio(counts.intersection.sum(), counts.union.sum()),
        **{f"precision_at_{p}": _mean(each >= p / 100) for p in (50, 60, 70, 80, 90)},
    }


PRESETS: Mapping[str, Callable[[Counts], dict[str, float]]] = {"lisa": lisa, "rela": rela, "gsva": gsva, "lavt": lavt}
"""By name; the names of their scores are those of `harness.evaluation.metrics`."""


def _added_up(values: np.ndarray) -> np.float32:
    """One after another in float32, as the meters of LISA and GSVA do; `np.sum` would round in another order."""
    return np.cumsum(values, dtype=np.float32)[-1] if len(values) else np.float32(0)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
