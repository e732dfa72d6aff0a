"""Metrics: values computed by hand, golden vectors, and general properties."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from harness.data.example import Example, Expression, encode_ids
from harness.data.overlap import iou
from harness.evaluation.metrics import count, mean_best_overlap, random_object_giou
from harness.results.metrics import score


def mask(*boxes: tuple[int, int, int, int], side: int = 8) -> np.ndarray:
    """A mask of boxes (top, bottom, left, right)."""
    filled = np.zeros((side, side), bool)
    for top, bottom, left, right in boxes:
        filled[top:bottom, left:right] = True
    return filled


EMPTY = mask()
GOLDEN = {
    "s0": (mask((3, 7, 2, 6)), mask((2, 6, 2, 6))),
    "s1": (EMPTY, EMPTY),
    "s2": (mask((0, 2, 0, 5)), EMPTY),
    "s3": (EMPTY, mask((0, 3, 0, 3))),
}
"""(prediction, target) of four expressions, for which four published evaluators have been run."""


def table(pairs: list[tuple[np.ndarray, np.ndarray]], families: list[str] | None = None) -> pd.DataFrame:
    counts = count(np.stack([p for p, _ in pairs]), np.stack([t for _, t in pairs]))
    samples = pd.DataFrame(counts)
    samples["iou"] = iou(samples["intersection"], samples["union"])
    samples["iou_teacher_forced"] = samples["iou"] / 2
    samples["family"] = families or ["all"] * len(pairs)
    return samples


def random_table(rows: int = 60) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    fill = generator.choice([0.0, 0.2, 0.8], size=(2, rows, 1, 1))
    masks = generator.random((2, rows, 8, 8)) < fill
    families = [str(family) for family in generator.choice(["attribute", "group", "absent"], rows)]
    return table(list(zip(masks[0], masks[1], strict=True)), families)


def test_counts_of_a_stack_equal_sums_over_pixels() -> None:
    """Also for masks that are stored by column, as COCO's are decoded."""
    predictions, targets = np.random.default_rng(0).random((2, 2, 3, 5, 7)) < 0.5
    for convert in (np.ascontiguousarray, np.asfortranarray):
        counts = count(convert(predictions), targets)
        assert np.array_equal(counts["intersection"], (predictions & targets).sum((-2, -1)))
        assert np.array_equal(counts["union"], (predictions | targets).sum((-2, -1)))
        assert np.array_equal(counts["predicted_area"], predictions.sum((-2, -1)))
        assert np.array_equal(counts["target_area"], targets.sum((-2, -1)))


def test_iou_of_a_3x3_mask_equals_the_count_by_hand() -> None:
    prediction = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    target = np.array([[0, 1, 0], [0, 1, 1], [0, 0, 1]], bool)
    counts = count(prediction, target)
    assert {name: int(value) for name, value in counts.items()} == {
        "intersection": 2,
        "union": 5,
        "predicted_area": 3,
        "target_area": 4,
    }
    assert iou(counts["intersection"], counts["union"]) == 0.4


def test_iou_is_1_for_two_empty_masks_and_0_for_one() -> None:
    np.testing.assert_array_equal(iou([0, 0, 0], [0, 10, 9]), [1.0, 0.0, 0.0])


def test_golden_vectors_agree_with_published_evaluators() -> None:
    scores = score(table(list(GOLDEN.values())))
    # Per sample .6, 1, 0, 0. ReLA: gIoU 40, cIoU 30.7692, T .5, N .5; LISA and GSVA the same up to their epsilons.
    assert scores["giou"] == pytest.approx(0.4, abs=1e-12)
    assert scores["giou_with_target"] == pytest.approx(0.3, abs=1e-12)
    assert scores["ciou"] == pytest.approx(12 / 39, abs=1e-12)
    assert scores["no_target_accuracy"] == 0.5
    assert scores["target_accuracy"] == 0.5
    # 16 + 10 pixels are predicted, of which 12 are in the target; the targets have 16 + 9.
    assert scores["fp_rate"] == pytest.approx(14 / 26, abs=1e-12)
    assert scores["fn_rate"] == pytest.approx(13 / 25, abs=1e-12)
    assert scores["giou_teacher_forced"] == pytest.approx(0.2, abs=1e-12)


def test_precision_counts_expressions_with_a_target_and_includes_the_threshold() -> None:
    half = (mask((0, 2, 0, 2)), mask((0, 2, 0, 4)))
    scores = score(table([*GOLDEN.values(), half]))
    # Targeted: s0 with .6, s3 with 0, half with exactly .5.
    assert scores["precision_at_50"] == pytest.approx(2 / 3)
    assert scores["precision_at_60"] == pytest.approx(1 / 3)
    assert scores["precision_at_70"] == 0.0


def test_wrong_object_rate_excludes_empty_predictions_and_missing_targets() -> None:
    other = (mask((5, 8, 5, 8)), mask((0, 3, 0, 3)))
    scores = score(table([*GOLDEN.values(), other]))
    # Of s0 (correct), s3 (empty) and other, only the last is a wrong object; s2 has no target.
    assert scores["wrong_object_rate"] == pytest.approx(1 / 3)


def test_a_mask_scores_1_against_itself_and_makes_no_errors() -> None:
    scores = score(table([(target, target) for _, target in GOLDEN.values()]))
    assert (scores["giou"], scores["ciou"], scores["fp_rate"], scores["fn_rate"]) == (1.0, 1.0, 0.0, 0.0)
    assert scores["wrong_object_rate"] == 0.0
    assert scores["precision_at_90"] == 1.0


def test_swapping_prediction_and_target_swaps_the_two_error_rates_only() -> None:
    pairs = list(GOLDEN.values())
    forward, backward = score(table(pairs)), score(table([(target, prediction) for prediction, target in pairs]))
    assert (forward["giou"], forward["ciou"]) == (backward["giou"], backward["ciou"])
    assert (forward["fp_rate"], forward["fn_rate"]) == (backward["fn_rate"], backward["fp_rate"])


def test_the_order_of_expressions_does_not_matter() -> None:
    samples = random_table()
    shuffled = samples.sample(frac=1, random_state=1)
    assert not shuffled.index.equals(samples.index)
    assert score(shuffled) == pytest.approx(score(samples), rel=1e-12, nan_ok=True)


def test_the_weighted_mean_of_families_is_the_total() -> None:
    samples = random_table()
    scores = score(samples)
    sizes = samples["family"].value_counts()
    predicted = samples.groupby("family")["predicted_area"].sum()
    whole = sum(scores[f"giou_{family}"] * size for family, size in sizes.items()) / len(samples)
    wrong = sum(scores[f"fp_rate_{family}"] * area for family, area in predicted.items()) / predicted.sum()
    assert whole == pytest.approx(scores["giou"])
    assert wrong == pytest.approx(scores["fp_rate"])


def test_a_metric_without_applicable_samples_is_nan() -> None:
    without_target = score(table([GOLDEN["s1"]]))
    for name in ("giou_with_target", "fp_rate", "fn_rate", "wrong_object_rate", "target_accuracy", "precision_at_50"):
        assert math.isnan(without_target[name]), name
    assert without_target["no_target_accuracy"] == 1.0
    assert math.isnan(score(table([GOLDEN["s0"]]))["no_target_accuracy"])
    assert score(table([GOLDEN["s0"]]).iloc[:0]) == {}


def example(objects: np.ndarray, *targets: tuple[int, ...]) -> Example:
    expressions = tuple(Expression(f"{ids}", "all", ids) for ids in targets)
    return Example("id", np.zeros((*objects.shape, 3), np.uint8), encode_ids(objects), expressions)


def test_random_object_giou_equals_a_loop_over_objects() -> None:
    generator = np.random.default_rng(0)
    examples = [
        example(generator.integers(0, count + 1, (8, 8)), (1,), (2,), (1, 2), (), (count,)) for count in (2, 3, 7)
    ]
    examples.append(example(np.array([[0, 1], [3, 3]]), (1,), (2,), (1, 3)))
    expected = []
    for one in examples:
        ids = one.id_map()
        objects = [ids == k for k in range(1, ids.max() + 1) if (ids == k).any()]
        for expression in one.expressions:
            target = one.mask(expression)
            expected.append(np.mean([(o & target).sum() / (o | target).sum() for o in objects]))
    assert random_object_giou(examples) == pytest.approx(np.mean(expected))


def test_a_random_object_from_an_empty_image_is_the_empty_mask() -> None:
    assert random_object_giou([example(np.zeros((4, 4), int), ())]) == 1.0
    assert math.isnan(random_object_giou([]))


def test_random_object_giou_is_nan_if_only_targets_are_annotated() -> None:
    """Otherwise chance on ReasonSeg, with one object per image, would be a perfect score."""
    whole = example(np.array([[0, 1], [2, 2]]), (1,))
    targets_only = replace(example(np.array([[0, 1], [0, 0]]), (1,)), lists_all_objects=False)
    assert math.isnan(random_object_giou([targets_only]))
    assert math.isnan(random_object_giou([whole, targets_only]))
    assert random_object_giou([whole, replace(targets_only, expressions=())]) == random_object_giou([whole])


def test_mean_best_overlap_uses_a_single_superpixel_per_object():
    """Object 1 covers one superpixel and a quarter of another; object 3 covers two; there is no object 2."""
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    objects = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [3, 3, 3, 3], [3, 3, 3, 3]])
    assert mean_best_overlap(labels, objects) == pytest.approx((4 / 5 + 4 / 8) / 2)
    assert mean_best_overlap(objects, objects) == 1.0
    assert math.isnan(mean_best_overlap(labels, np.zeros((4, 4), int)))
