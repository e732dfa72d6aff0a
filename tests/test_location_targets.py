"""Shares of targets in the cells of a grid, computed once, equal to averages of full masks."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from harness.assembly import location_targets
from harness.assembly.location_targets import LocationTargets
from harness.data.example import Example, Expression, encode
from harness.data.frame import Frame


def _example(size: tuple[int, int], seed: int) -> Example:
    """Three objects, of which the first two overlap."""
    masks = np.random.default_rng(seed).random((3, *size)) < 0.3
    return Example("one", np.zeros((*size, 3), np.uint8), tuple(encode(mask) for mask in masks), ())


def _pairs(size: tuple[int, int] = (40, 56)) -> list[tuple[Example, Expression]]:
    return [
        (_example(size, seed), Expression("words", "all", targets))
        for seed in range(2)
        for targets in ((1,), (2, 3), (1, 2), ())
    ]


@pytest.mark.parametrize("size", [(56, 56), (40, 56), (80, 33)])
@pytest.mark.parametrize("grid", [(7, 7), (9, 9)])
def test_shares_equal_averages_of_the_placed_masks(size, grid):
    """Also where images are resized and padded, and where cells do not divide the frame."""
    pairs = _pairs(size)
    masks = np.stack([Frame.of(size, 56).place_mask(example.mask(one)) for example, one in pairs])
    expected = F.interpolate(torch.from_numpy(masks).float()[:, None], grid, mode="area")[:, 0]
    targets = LocationTargets(56, grid)
    assert expected.amax((1, 2)).min() == 0
    for _ in range(2):
        assert_close(targets.load(pairs), expected, atol=1e-6, rtol=0)


def test_no_expressions_have_no_shares():
    assert LocationTargets(56, (7, 7)).load([]).shape == (0, 7, 7)


def test_shares_are_computed_once_while_they_are_kept(monkeypatch):
    monkeypatch.setattr(location_targets, "MAX_BYTES", 6 * 4 * 7 * 7)
    targets, computed = LocationTargets(56, (7, 7)), []
    place = Frame.place_mask
    monkeypatch.setattr(Frame, "place_mask", lambda frame, mask: computed.append(1) or place(frame, mask))
    pairs = _pairs()
    first = targets.load(pairs[:6] * 2)
    assert len(computed) == 6
    assert_close(targets.load(pairs[:6]), first[:6], atol=0, rtol=0)
    assert len(computed) == 6
    assert_close(targets.load(pairs)[:6], first[:6], atol=0, rtol=0)
    assert len(computed) == 8
    assert_close(targets.load(pairs[:2]), first[:2], atol=0, rtol=0)
    assert len(computed) == 10
