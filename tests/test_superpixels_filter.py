"""The filter: equal to a plain loop, keeps what it must, adds only what fits; and the partition made of it."""

import numpy as np
import pytest
from pycocotools import mask as coco

from harness.superpixels.candidates import Candidates
from harness.superpixels.filter import (
    FilterSettings,
    choose,
    label_map,
    on_grid,
    rock_sand_water,
    settle,
    suppress_duplicates,
)

SIDE, POOL = 48, 6


def random_candidates(seed: int, count: int = 40) -> Candidates:
    """Ellipses of random level, score and place."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    centres, radii = rng.uniform(0, SIDE, (2, count)), rng.uniform(3, SIDE / 3, (2, count))
    masks = [
        ((rows - centres[0, i]) / radii[0, i]) ** 2 + ((columns - centres[1, i]) / radii[1, i]) ** 2 < 1
        for i in range(count)
    ]
    return _candidates(
        np.stack(masks),
        rng.integers(0, 3, count),
        rng.uniform(0.6, 1, count),
        rng.uniform(0.8, 1, count),
        rng.integers(0, POOL, (count, 2)),
    )


def _candidates(masks, levels, predicted_iou=None, stability=None, points=None) -> Candidates:
    ones = np.ones(len(masks), np.float32)
    return Candidates(
        coco.encode(np.asfortranarray(np.asarray(masks).transpose(1, 2, 0), dtype=np.uint8)),
        np.zeros((len(masks), 2), int) if points is None else points,
        np.asarray(levels),
        ones if predicted_iou is None else predicted_iou.astype(np.float32),
        ones if stability is None else stability.astype(np.float32),
    )


def plain_loop(candidates: Candidates, settings: FilterSettings) -> list[int]:
    """FMA-WSSS, one mask and one pair at a time: indices of what is kept."""
    masks, levels = candidates.masks(), candidates.levels
    grid = [int((i + 0.5) * POOL / settings.points_per_side) for i in range(settings.points_per_side)]
    good = []
    for i in range(len(candidates)):
        iou = candidates.predicted_iou[i] + (0.1 if levels[i] == 2 else 0.0)
        row, column = candidates.points[i]
        is_good = iou > settings.min_iou and candidates.stability[i] >= settings.min_stability
        if is_good and row in grid and column in grid and masks[i].sum() >= settings.min_area:
            good.append(i)
    distinct: list[int] = []
    for i in sorted(good, key=lambda i: -(candidates.predicted_iou[i] + (1.0 if levels[i] == 2 else 0.0))):
        if all(_box_iou(masks[i], masks[k]) <= 0.7 for k in distinct):
            distinct.append(i)
    kept = [i for i in distinct if levels[i] == 2]
    for level in (1, 0):
        fits = []
        for i in distinct:
            shares = [(masks[i] & masks[k]).sum() / masks[i].sum() for k in kept]
            if levels[i] == level and max(shares, default=0.0) < settings.max_overlap:
                fits.append(i)
        kept = kept + fits
    return sorted(kept)


def _box_iou(first: np.ndarray, second: np.ndarray) -> float:
    boxes = []
    for mask in (first, second):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((rows[0], rows[-1], columns[0], columns[-1]))
    (top, bottom, left, right), (other_top, other_bottom, other_left, other_right) = boxes
    height = max(0, min(bottom, other_bottom) - max(top, other_top))
    width = max(0, min(right, other_right) - max(left, other_left))
    areas = (bottom - top) * (right - left) + (other_bottom - other_top) * (other_right - other_left)
    return height * width / (areas - height * width)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("points_per_side", [POOL, 3])
@pytest.mark.parametrize("max_overlap", [0.1, 0.3, 0.8, 2.0])
def test_the_filter_equals_a_plain_loop(seed, points_per_side, max_overlap):
    candidates = random_candidates(seed)
    settings = FilterSettings(points_per_side, 0.75, 0.85, max_overlap, 60.0)
    kept = plain_loop(candidates, settings)
    assert sorted(str(rle) for rle in choose(candidates, settings, POOL).rles) == sorted(
        str(candidates.rles[i]) for i in kept
    )


@pytest.mark.parametrize("seed", range(4))
def test_every_whole_that_survives_suppression_is_kept_and_every_part_fits(seed):
    candidates = random_candidates(seed)
    distinct = candidates.select(suppress_duplicates(candidates, 1.0))
    kept = rock_sand_water(distinct, 0.3)
    assert kept[distinct.levels == 2].all()
    masks = distinct.masks()
    for level in (1, 0):
        before = masks[kept & (distinct.levels > level)]
        for i in np.flatnonzero(distinct.levels == level):
            share = (before & masks[i]).sum((1, 2)).max(initial=0) / masks[i].sum()
            assert kept[i] == (share < 0.3)


def test_parts_are_all_kept_where_nothing_is_whole():
    candidates = random_candidates(0)
    parts = candidates.select(candidates.levels == 1)
    assert rock_sand_water(parts, 0.0).all()


def test_a_whole_beats_any_part_of_the_same_box():
    square = np.zeros((1, SIDE, SIDE), bool)
    square[:, 4:20, 4:20] = True
    candidates = _candidates(square.repeat(2, axis=0), [0, 2], np.array([0.99, 0.5]))
    assert suppress_duplicates(candidates, 1.0).tolist() == [1]
    assert suppress_duplicates(candidates, 0.0).tolist() == [0]


def test_a_coarser_grid_is_sams_own_where_it_divides_and_always_part_of_the_pools():
    everywhere = np.stack(np.divmod(np.arange(81), 9), axis=1)
    assert np.unique(everywhere[on_grid(everywhere, 9, 3)]).tolist() == [1, 4, 7]
    assert on_grid(everywhere, 9, 9).all()
    for side in range(1, 10):
        assert on_grid(everywhere, 9, side).sum() == side**2


def test_the_smallest_mask_that_holds_a_pixel_owns_it():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 2:4, 2:4] = masks[1, :6, :6] = masks[2, 4:8, 4:8] = True
    labels = label_map(_candidates(masks, [0, 2, 1]), 8, 8)
    assert labels[2, 2] == 0
    assert labels[1, 1] == 1
    assert labels[5, 5] == 2
    assert labels[0, 7] == -1
    assert (label_map(_candidates(masks, [0, 2, 1]).select(np.zeros(3, bool)), 8, 8) == -1).all()


def test_small_fragments_go_to_what_is_nearest():
    labels = np.full((6, 12), -1)
    labels[:, :5] = 0
    labels[:, 8:] = 1
    labels[2, 2] = labels[0, 9] = -1
    labels[5, 0] = 1
    expected = np.full((6, 12), -1)
    expected[:, :5] = 0
    expected[:, 8:] = 1
    assert np.array_equal(settle(labels, 3), expected)


def test_where_all_fragments_are_small_the_largest_stays():
    assert (settle(np.array([[0, 0, 1]]), 100) == 0).all()
