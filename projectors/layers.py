"""Blocks and checks that two or more projectors use."""

from math import isqrt
from typing import Annotated

import torch
from einops import rearrange
from pydantic import AfterValidator
from torch import Tensor, nn

from projectors.contract import Dims, IncompatibleError


def _is_square(count: int) -> int:
    side = isqrt(count)
    if side**2 != count:
        raise ValueError(f"{count} is not a square number; use {side**2} or {(side + 1) ** 2}")
    return count


SquareCount = Annotated[int, AfterValidator(_is_square)]
"""Of a `Config`: tokens that form a square grid."""


def require_superpixels(dims: Dims, projector: str) -> None:
    """Raises IncompatibleError where the study names no source of superpixels."""
    if not dims.max_superpixels:
        raise IncompatibleError(f"{projector} needs superpixels, and the study names no source; set base.superpixels")


def mlp(input_dim: int, output_dim: int, depth: int) -> nn.Sequential:
    """LLaVA's mlp{depth}x_gelu: `depth` linear layers, every hidden width equal to the output's."""
    layers: list[nn.Module] = [nn.Linear(input_dim, output_dim)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(output_dim, output_dim)]
    return nn.Sequential(*layers)


def area_fractions(labels: Tensor, num_regions: int, size: tuple[int, int]) -> Tensor:
    """How much of each cell of an h x w grid belongs to each region, exactly, from pixels.

    Args:
        labels: (B, R, R) int64, a region id per pixel, -1 where there is none.
        num_regions: S; every label is below it.
        size: (h, w) of the grid laid over the frame; it need not divide R.

    Returns:
        (B, S, h*w), the share of the cell's pixels that carry the label s, in 0..1. A region smaller than a cell
        keeps its small share, so it is never lost.
    """
    batch, height, width = labels.shape
    rows = torch.arange(height, device=labels.device) * size[0] // height
    columns = torch.arange(width, device=labels.device) * size[1] // width
    cells = rows[:, None] * size[1] + columns
    num_cells = size[0] * size[1]
    # Pixels of no region are counted in an extra first slot, which is cut off.
    first = (torch.arange(batch, device=labels.device) * (num_regions + 1) + 1) * num_cells
    slots = torch.add(first[:, None, None] + cells, labels, alpha=num_cells)
    counts = torch.bincount(slots.flatten(), minlength=batch * (num_regions + 1) * num_cells)
    counts = rearrange(counts, "(b s n) -> b s n", b=batch, n=num_cells)[:, 1:]
    return counts / torch.bincount(cells.flatten(), minlength=num_cells).clamp(min=1)


def pool_by_area(patches: Tensor, areas: Tensor) -> Tensor:
    """Mean of the patches (B, N, C) under each region's areas (B, T, N): (B, T, C), zeros where a region is empty."""
    total = areas.sum(dim=-1, keepdim=True)
    weights = areas / total.where(total > 0, 1)
    return weights.to(patches.dtype) @ patches
