"""Published evaluators, compared with the output of their code on four expressions."""

import numpy as np
import pandas as pd
import pytest

from harness.results.published_metrics import IGNORED, Counts, gsva, lavt, lisa, rela
from tests.test_metrics import GOLDEN, mask

PREDICTIONS = [prediction for prediction, _ in GOLDEN.values()]
TARGETS = [target.astype(np.uint8) for _, target in GOLDEN.values()]
EMPTY_IS_REJECTED = [not prediction.any() for prediction in PREDICTIONS]
ALSO_THE_FIRST = [True, *EMPTY_IS_REJECTED[1:]]


def counts(rejected: list[bool] | None = None) -> Counts:
    return Counts.of(PREDICTIONS, TARGETS, rejected)


def test_lisa() -> None:
    assert lisa(counts()) == {
        "giou": pytest.approx(0.399998903, abs=5e-10),
        "ciou": pytest.approx(0.307692319, abs=5e-10),
    }
    single = [lisa(Counts.of([p], [t]))["giou"] * (1 + 1e-5) for p, t in zip(PREDICTIONS, TARGETS, strict=True)]
    assert single == pytest.approx([0.599999726, 1, 0, 0], abs=3e-8)


class AverageMeter:
    """As LISA's, in float32."""

    def __init__(self) -> None:
        self.sum, self.count = np.float32(0), 0

    def update(self, value: np.float32, n: int = 1) -> None:
        self.sum, self.count = self.sum + value * n, self.count + n


def test_lisa_sums_image_by_image_with_equal_rounding() -> None:
    """Compared with a loop as in its `validate`."""
    generator = np.random.default_rng(0)
    for _ in range(30):
        images = np.repeat(np.arange(100), generator.integers(1, 9, 100))
        union = generator.integers(0, 300_000, len(images))
        intersection = (union * generator.random(len(images))).astype(np.int64)
        iou_meter, intersections, unions = AverageMeter(), AverageMeter(), AverageMeter()
        for image in range(100):
            iou, inner, outer = np.float32(0), np.float32(0), np.float32(0)
            of_image = images == image
            for i, u in zip(intersection[of_image].astype(np.float32), union[of_image].astype(np.float32), strict=True):
                iou += i / (u + np.float32(1e-5)) + np.float32(u == 0)
                inner, outer = inner + i, outer + u
            number = int(of_image.sum())
            iou_meter.update(iou / number, number)
            intersections.update(inner)
            unions.update(outer)
        nothing = np.zeros(len(images), np.int64)
        found = lisa(Counts(intersection, union, nothing, nothing, nothing.astype(bool), images))
        assert found["giou"] == iou_meter.sum / (iou_meter.count + 1e-5)
        assert found["ciou"] == intersections.sum / (unions.sum + 1e-10)


def test_counts_of_samples_have_the_image_of_each_expression() -> None:
    columns = {
        "predicted_area_teacher_forced": 1,
        "target_area": 1,
        "intersection_teacher_forced": 1,
        "predicted_seg": True,
    }
    samples = pd.DataFrame({"image_id": ["b", "b", "a"], **columns})
    assert Counts.of_samples(samples).image.tolist() == [0, 0, 1]
    assert Counts.of(PREDICTIONS, TARGETS, image=[3, 3, 1, 1]).image.tolist() == [3, 3, 1, 1]


def test_lisa_without_expressions() -> None:
    assert lisa(Counts.of([], [])) == {"giou": 0, "ciou": 0}


@pytest.mark.parametrize(
    ("rejected", "expected"),
    [(EMPTY_IS_REJECTED, (40.0, 30.7692, 0.5, 0.5)), (ALSO_THE_FIRST, (25.0, 0.0, 0.0, 0.5))],
)
def test_rela(rejected: list[bool], expected: tuple[float, ...]) -> None:
    scores = rela(counts(rejected))
    found = [scores[name] for name in ("giou", "ciou", "target_accuracy", "no_target_accuracy")]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("rejected", "expected"),
    [
        (EMPTY_IS_REJECTED, (0.399998993, 0.307692319, 0.5, 0.5)),
        (ALSO_THE_FIRST, (0.399998993, 0.307692319, 0.5, 0.0)),
    ],
)
def test_gsva(rejected: list[bool], expected: tuple[float, ...]) -> None:
    scores = gsva(counts(rejected))
    found = [scores[name] for name in ("giou", "ciou", "no_target_accuracy", "target_accuracy")]
    assert found == pytest.approx(expected, abs=5e-10)


def test_gsva_leaves_hallucinations_out_of_ciou_on_ref_zom() -> None:
    scores = gsva(counts(EMPTY_IS_REJECTED), counts_hallucinations=False)
    assert scores["ciou"] == pytest.approx(0.413793117, abs=5e-10)


def test_lavt() -> None:
    scores = lavt(counts())
    assert (scores["giou"], scores["ciou"]) == (pytest.approx(0.15), pytest.approx(0.307692, abs=1e-6))
    assert (scores["precision_at_50"], scores["precision_at_70"]) == (0.25, 0.0)


def test_overlapping_polygons_lower_the_score_of_a_perfect_mask_in_lisas_ground_truth() -> None:
    target = mask((0, 4, 0, 4)).astype(np.uint8)
    target[:2, :2] = 2
    perfect = [target > 0]
    assert lisa(Counts.of(perfect, [target]))["giou"] == pytest.approx(1, abs=1e-4)
    assert lisa(Counts.of(perfect, [target], ground_truth="lisa_sum"))["giou"] == pytest.approx(0.75, abs=1e-4)


def test_ignored_pixels_are_in_no_count() -> None:
    target = mask((0, 4, 0, 4)).astype(np.uint8)
    target[4:] = IGNORED
    predicted = mask((0, 8, 0, 4))
    assert lisa(Counts.of([predicted], [target]))["giou"] == pytest.approx(1, abs=1e-4)
    everything = np.full_like(target, IGNORED)
    assert lisa(Counts.of([predicted], [everything]))["giou"] == pytest.approx(1, abs=1e-4)


def test_rela_without_expressions_of_a_kind() -> None:
    targeted, empty = (Counts.of([p], [t], [not p.any()]) for p, t in list(GOLDEN.values())[:2])
    assert rela(targeted)["no_target_accuracy"] == 0
    assert rela(targeted)["target_accuracy"] == 0
    assert np.isnan(rela(empty)["target_accuracy"])
    assert np.isnan(rela(empty)["precision_at_70"])
    assert rela(empty)["giou"] == 100
