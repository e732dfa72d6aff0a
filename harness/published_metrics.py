"""Scores as four published evaluators compute them, epsilons and edge cases included, to be put beside their numbers.

Ours are in `harness.metrics`; these differ from them, and from one another, in what an expression without a target
counts, whether a rejected expression keeps its mask, where epsilons stand, and what a share is a share of.

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
    """

    intersection: np.ndarray
    union: np.ndarray
    predicted: np.ndarray
    target: np.ndarray
    is_rejected: np.ndarray

    @classmethod
    def of(
        cls,
        predictions: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        is_rejected: Sequence[bool] | None = None,
        ground_truth: GroundTruth = "union",
    ) -> "Counts":
        """Counts of masks.

        Args:
            predictions: (h, w) bool each.
            targets: (h, w) integers each: the sum of an annotation's polygons, `IGNORED` where a pixel is not judged.
            is_rejected: none by default; a mask that is empty is no rejection.
            ground_truth: what a pixel of two polygons is: the object's ("union"), or, as in LISA's loader, neither the
                object's nor ignored, so that even a perfect mask scores under 1.
        """
        rows = []
        for predicted, values in zip(predictions, targets, strict=True):
            is_judged = values != IGNORED
            target = is_judged & ((values == 1) if ground_truth == "lisa_sum" else (values > 0))
            drawn = predicted & is_judged
            rows.append([(drawn & target).sum(), (drawn | target).sum(), drawn.sum(), target.sum()])
        columns = np.array(rows, np.int64).reshape(-1, 4).T
        rejected = np.zeros(len(rows), bool) if is_rejected is None else np.asarray(is_rejected, bool)
        return cls(columns[0], columns[1], columns[2], columns[3], rejected)

    @classmethod
    def of_samples(cls, samples: pd.DataFrame) -> "Counts":
        """Counts of the rows of one cell in the samples table: the masks drawn with [SEG] given, and the answers."""
        predicted, target = samples["predicted_area_teacher_forced"], samples["target_area"]
        intersection = samples["intersection_teacher_forced"]
        columns = (intersection, predicted + target - intersection, predicted, target)
        values = [column.to_numpy(np.int64) for column in columns]
        return cls(values[0], values[1], values[2], values[3], ~samples["answered"].to_numpy(bool))

    @property
    def has_target(self) -> np.ndarray:
        """(M,) bool."""
        return self.target > 0


def lisa(counts: Counts) -> dict[str, float]:
    """LISA, GLaMM, PixelLM and GSVA's `validate`, in float32: the answer is given, so nothing can be rejected."""
    intersection, union = counts.intersection.astype(np.float32), counts.union.astype(np.float32)
    each = intersection / (union + np.float32(1e-5))
    each[union == 0] += 1
    return {
        "giou": float(each.sum(dtype=np.float32) / (len(each) + 1e-5)),
        "ciou": float(intersection.sum(dtype=np.float32) / (union.sum(dtype=np.float32) + 1e-10)),
    }


def rela(counts: Counts) -> dict[str, float]:
    """ReLA on gRefCOCO: a rejected expression has no mask. IoUs and precisions in percent, accuracies as fractions.

    Precisions are shares of the expressions that have a target, accuracies 0 where no expression is of their kind, as
    in the release; where it divides by zero, for want of any target, precisions are NaN.
    """
    has_target, rejected = counts.has_target, counts.is_rejected
    intersection = np.where(rejected, 0, counts.intersection)
    union = np.where(rejected & ~has_target, 0, counts.union)
    each = np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)
    each[rejected & ~has_target] = 1
    return {
        "giou": 100 * _mean(each),
        "ciou": 100 * _ratio(intersection.sum(), union.sum()),
        **{f"precision_at_{p}": 100 * _mean(each[has_target] >= p / 100) for p in (70, 80, 90)},
        "no_target_accuracy": _ratio(rejected[~has_target].sum(), (~has_target).sum(), otherwise=0.0),
        "target_accuracy": _ratio((~rejected[has_target]).sum(), has_target.sum(), otherwise=0.0),
    }


def gsva(counts: Counts, *, counts_hallucinations: bool = True) -> dict[str, float]:
    """GSVA's `eval_gres`: a rejected expression with a target keeps its mask.

    Args:
        counts_hallucinations: whether what is predicted for no target enters cIoU; so on gRefCOCO, not on Ref-ZOM.
    """
    has_target, rejected = counts.has_target, counts.is_rejected
    each = counts.intersection / (counts.union + 1e-8)
    each = np.where(has_target, each, rejected.astype(float))
    union = np.where(has_target, counts.union, 0)
    if counts_hallucinations:
        union = np.where(~has_target & ~rejected, counts.union, union)
    return {
        "giou": float(each.sum() / (len(each) + 1e-5)),
        "ciou": float(np.where(has_target, counts.intersection, 0).sum() / (union.sum() + 1e-8)),
        "no_target_accuracy": _ratio(rejected[~has_target].sum(), (~has_target).sum()),
        "target_accuracy": _ratio((~rejected[has_target]).sum(), has_target.sum()),
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
"""By name; the names of their scores are those of `harness.metrics`."""


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _ratio(part: float, whole: float, otherwise: float = float("nan")) -> float:
    return float(part / whole) if whole else otherwise
