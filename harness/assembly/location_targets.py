"""Targets of the location loss: the share of each cell of a coarse grid that an expression's target covers."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.data.example import Example, Expression
from harness.data.frame import Frame

MAX_BYTES = 2**27
"""Of the shares that are kept in memory; 128 MiB are 42,000 targets on a grid of 28 x 28."""


class LocationTargets:
    """Shares of recent targets, computed from their masks once.

    Args:
        frame: R, side of the frame in pixels.
        grid: (g, g), cells over the frame; their side need not divide R.
    """

    def __init__(self, frame: int, grid: tuple[int, int]) -> None:
        self.frame = frame
        self.grid = grid
        self.max_kept = MAX_BYTES // (4 * grid[0] * grid[1])
        # Row i averages the pixels of the i-th cell.
        means = F.adaptive_avg_pool1d(torch.eye(frame), grid[0]).T, F.adaptive_avg_pool1d(torch.eye(frame), grid[1])
        self._rows, self._columns = means
        self._kept: dict[tuple[Example, tuple[int, ...]], Tensor] = {}

    @classmethod
    @lru_cache(maxsize=2)
    def shared(cls, frame: int, grid: tuple[int, int]) -> "LocationTargets":
        """One object for all cells with this frame and grid."""
        return cls(frame, grid)

    def load(self, expressions: Sequence[tuple[Example, Expression]]) -> Tensor:
        """Shares (S, g, g) in 0..1 of the targets of expressions, each with its example."""
        keys = [(example, one.targets) for example, one in expressions]
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        found = dict(zip(missing, self._shares(missing), strict=True)) if missing else {}
        shares = [found[key] if key in found else self._kept[key] for key in keys]
        self._kept.update(found)
        while len(self._kept) > self.max_kept:
            del self._kept[next(iter(self._kept))]
        return torch.stack(shares) if shares else torch.zeros(0, *self.grid)

    def _shares(self, keys: Sequence[tuple[Example, tuple[int, ...]]]) -> Tensor:
        """Shares of the union of these objects of each example."""
        masks = [Frame.of(one.size, self.frame).place_mask(one.target_mask(targets)) for one, targets in keys]
        return self._rows @ torch.from_numpy(np.stack(masks, dtype=np.float32)) @ self._columns
