"""Published evaluators, on four expressions that their own code was run on."""

import numpy as np
import pytest

from harness.published_metrics import IGNORED, Counts, gsva, lavt, lisa, rela
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


def test_a_pixel_of_two_polygons_costs_a_perfect_mask_in_lisas_ground_truth() -> None:
    target = mask((0, 4, 0, 4)).astype(np.uint8)
    target[:2, :2] = 2
    perfect = [target > 0]
    assert lisa(Counts.of(perfect, [target]))["giou"] == pytest.approx(1, abs=1e-4)
    assert lisa(Counts.of(perfect, [target], ground_truth="lisa_sum"))["giou"] == pytest.approx(0.75, abs=1e-4)


def test_ignored_pixels_are_in_no_count() -> None:
    target = mask((0, 4, 0, 4)).astype(np.uint8)
    target[4:] = IGNORED
    drawn = mask((0, 8, 0, 4))
    assert lisa(Counts.of([drawn], [target]))["giou"] == pytest.approx(1, abs=1e-4)
    everything = np.full_like(target, IGNORED)
    assert lisa(Counts.of([drawn], [everything]))["giou"] == pytest.approx(1, abs=1e-4)


def test_rela_without_expressions_of_a_kind() -> None:
    targeted, empty = (Counts.of([p], [t], [not p.any()]) for p, t in list(GOLDEN.values())[:2])
    assert rela(targeted)["no_target_accuracy"] == 0
    assert rela(targeted)["target_accuracy"] == 0
    assert np.isnan(rela(empty)["target_accuracy"])
    assert np.isnan(rela(empty)["precision_at_70"])
    assert rela(empty)["giou"] == 100
