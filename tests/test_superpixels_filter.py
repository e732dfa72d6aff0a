"""The filter equals a plain loop; and the conversion of its masks to a partition."""

import numpy as np
import pytest

from benchmarks.superpixels import ellipses, filter_by_loop
from harness.superpixels.candidates import Candidates, encode
from harness.superpixels.filter import (
    FilterSettings,
    absorb_fragments,
    choose,
    label_map,
    on_grid,
    rock_sand_water,
    suppress_duplicates,
)

SIDE, POOL = 48, 6


def random_candidates(seed: int) -> Candidates:
    return ellipses(40, SIDE, POOL, seed)


def candidates_of(
    masks: np.ndarray, levels: list[int], predicted_iou: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> Candidates:
    """Stable masks, all prompted by the first point."""
    count = len(masks)
    return Candidates(
        encode(masks),
        np.zeros((count, 2), int),
        np.array(levels),
        np.array(predicted_iou[:count], np.float32),
        np.ones(count, np.float32),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("points_per_side", [POOL, 3])
@pytest.mark.parametrize("max_overlap", [0.1, 0.3, 0.8, 2.0])
def test_the_filter_equals_a_plain_loop(seed, points_per_side, max_overlap):
    candidates = random_candidates(seed)
    settings = FilterSettings(points_per_side, 0.75, 0.85, max_overlap, 60.0)
    kept = filter_by_loop(candidates, candidates.masks(), settings, POOL)
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


def test_without_wholes_all_parts_are_kept():
    candidates = random_candidates(0)
    parts = candidates.select(candidates.levels == 1)
    assert rock_sand_water(parts, 0.0).all()


def test_a_whole_beats_any_part_of_the_same_box():
    square = np.zeros((1, SIDE, SIDE), bool)
    square[:, 4:20, 4:20] = True
    candidates = candidates_of(square.repeat(2, axis=0), [0, 2], (0.99, 0.5))
    assert suppress_duplicates(candidates, 1.0).tolist() == [1]
    assert suppress_duplicates(candidates, 0.0).tolist() == [0]


def test_a_coarser_grid_is_sams_own_where_it_divides_and_always_part_of_the_pools():
    everywhere = np.stack(np.divmod(np.arange(81), 9), axis=1)
    assert np.unique(everywhere[on_grid(everywhere, 9, 3)]).tolist() == [1, 4, 7]
    assert on_grid(everywhere, 9, 9).all()
    for side in range(1, 10):
        assert on_grid(everywhere, 9, side).sum() == side**2


def test_a_pixel_belongs_to_parts_before_wholes_and_to_the_best_mask_of_a_level():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 2:4, 2:4] = masks[1, :6, :6] = masks[2, 4:8, 4:8] = True
    labels = label_map(candidates_of(masks, [0, 2, 2], (0.6, 0.7, 0.8)), 8, 8)
    assert labels[2, 2] == 0
    assert labels[1, 1] == 1
    assert labels[5, 5] == 2
    assert labels[0, 7] == -1
    wholes = label_map(candidates_of(masks, [2, 2, 2], (0.6, 0.7, 0.8)), 8, 8)
    assert wholes[2, 2] == 1
    assert (label_map(candidates_of(masks, [0, 2, 1]).select(np.zeros(3, bool)), 8, 8) == -1).all()


def test_small_fragments_are_merged_into_the_nearest():
    labels = np.full((6, 12), -1)
    labels[:, :5] = 0
    labels[:, 8:] = 1
    labels[2, 2] = labels[0, 9] = -1
    labels[5, 0] = 1
    expected = np.full((6, 12), -1)
    expected[:, :5] = 0
    expected[:, 8:] = 1
    assert np.array_equal(absorb_fragments(labels, 3), expected)


def test_if_all_fragments_are_small_the_largest_stays():
    assert (absorb_fragments(np.array([[0, 0, 1]]), 100) == 0).all()
