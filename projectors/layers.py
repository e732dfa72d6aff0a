"""Blocks and checks that two or more projectors use."""

from collections.abc import Mapping
from math import gcd, isqrt
from typing import Annotated, Self

import torch
from einops import rearrange
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from projectors.contract import Dims, PartConfig
from projectors.errors import IncompatibleError


def _is_square(count: int) -> int:
    side = isqrt(count)
    if side**2 != count:
        raise ValueError(f"{count} is not a square number; use {side**2} or {(side + 1) ** 2}")
    return count


SquareCount = Annotated[int, AfterValidator(_is_square)]
"""Of a `Config`: tokens that form a square grid."""


class HeadedConfig(PartConfig):
    """Of attention that has a width of its own."""

    width: int = Field(ge=1)
    heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self


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


def region_masks(labels: Tensor, num_regions: int) -> Tensor:
    """A label map (B, R, R), as of `area_fractions`, as one mask a region: (B, S, R, R) bool."""
    return labels[:, None] == torch.arange(num_regions, device=labels.device)[:, None, None]


def pool_by_area(patches: Tensor, areas: Tensor) -> Tensor:
    """Mean of the patches (B, N, C) under each region's areas (B, T, N): (B, T, C), zeros where a region is empty."""
    total = areas.sum(dim=-1, keepdim=True)
    weights = areas / total.where(total > 0, 1)
    return weights.to(patches.dtype) @ patches


class GridAverage(nn.Module):
    """Means over the cells of a coarse grid, of what is real; a cell that holds nothing else is empty.

    Raises:
        IncompatibleError: the grid of cells is finer than that of the patches.
    """

    cells: Tensor

    def __init__(self, grid: tuple[int, int], num_cells: int) -> None:
        super().__init__()
        self.grid = grid
        self.side = isqrt(num_cells)
        if self.side > min(grid):
            raise IncompatibleError(
                f"tokens={num_cells} asks for a {self.side}x{self.side} grid of tokens, finer than the "
                f"{grid[0]}x{grid[1]} patch grid; use at most {min(grid) ** 2}"
            )
        # What one patch adds to the mean of each cell; cells overlap where the grids do not divide.
        added = self._mean(torch.eye(grid[0] * grid[1])[..., None])
        self.register_buffer("cells", rearrange((added > 0).float(), "n t 1 -> t n"), persistent=False)

    def forward(self, values: Tensor, patch_mask: Tensor) -> tuple[Tensor, Tensor]:
        """values (B, N, E), patch_mask (B, N) -> means (B, T, E), zero where empty, and (B, T) bool, False there."""
        is_valid = patch_mask[..., None].to(values.dtype)
        share = self._mean(is_valid)
        return self._mean(values * is_valid) / share.where(share > 0, 1), share[..., 0] > 0

    def regions(self, patch_mask: Tensor) -> Tensor:
        """(B, T, N), 1 where a real patch is counted to a cell."""
        return self.cells * patch_mask[:, None]

    def _mean(self, values: Tensor) -> Tensor:
        maps = rearrange(values, "b (h w) e -> b e h w", h=self.grid[0])
        return rearrange(F.adaptive_avg_pool2d(maps, self.side), "b e i j -> b (i j) e")


def blocks_of(dims: Dims, scale: int, lowest: int = 1) -> dict[str, int]:
    """Sizes by which einops takes the grid apart into s x s blocks, for "b (h i w j) c".

    Raises:
        IncompatibleError: the scale does not divide the grid.
    """
    height, width = dims.grid
    if height % scale or width % scale:
        allowed = [side for side in range(lowest, gcd(height, width) + 1) if not gcd(height, width) % side]
        raise IncompatibleError(
            f"scale={scale} does not divide the {height}x{width} patch grid; "
            f"use {', '.join(map(str, allowed)) or 'another frame, as no scale fits'}"
        )
    return {"h": height // scale, "w": width // scale, "i": scale, "j": scale}


class KeyValueNorm(nn.Module):
    """The layer norms of keys and of values, joined: the first half of each parameter is the keys'.

    The keys' bias cancels in the softmax and never learns; releases have it, so it is kept.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(2 * width))
        self.bias = nn.Parameter(torch.zeros(2 * width))

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(..., E) each -> (..., E) each."""
        (key_weight, value_weight), (key_bias, value_bias) = self.weight.chunk(2), self.bias.chunk(2)
        return (
            F.layer_norm(keys, keys.shape[-1:], key_weight, key_bias, self.eps),
            F.layer_norm(values, values.shape[-1:], value_weight, value_bias, self.eps),
        )

    @staticmethod
    def join(state_dict: Mapping[str, Tensor], keys: str, values: str) -> dict[str, Tensor]:
        """A release's weights with the two norms, told apart by `keys` and `values` in their names, made one."""
        joined = dict(state_dict)
        for name, of_keys in state_dict.items():
            other = name.replace(keys, values)
            if other != name and other in joined and joined[other].shape == of_keys.shape:
                joined[name] = torch.cat([of_keys, joined.pop(other)])
        return joined


def one_region_a_patch(patch_mask: Tensor) -> Tensor:
    """(B, N) bool -> (B, N, N), for projectors that give each real patch a token."""
    return torch.diag_embed(patch_mask.float())


def sincos(side: int, width: int) -> Tensor:
    """(side^2, width): sines and cosines of the column, then of the row, in waves from 1 to almost 10000 long."""
    quarter = width // 4
    waves = torch.arange(side)[:, None] * 10000 ** -(torch.arange(quarter) / quarter)
    along = torch.cat([waves.sin(), waves.cos()], dim=-1)
    columns, rows = along.expand(side, -1, -1), along[:, None].expand(-1, side, -1)
    return rearrange(torch.cat([columns, rows], dim=-1), "i j c -> (i j) c")


def resized(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions of a square grid (T, E), read between its places: (1, H * W, E)."""
    maps = rearrange(positions, "(h w) e -> 1 e h w", h=isqrt(len(positions)))
    return rearrange(F.interpolate(maps, size=grid, mode="bicubic", align_corners=False), "1 e h w -> 1 (h w) e")


def require_sincos_heads(heads: int, width: int, whose: str) -> None:
    """Raises IncompatibleError where attention heads, or sines and cosines of rows and columns, do not fit a width."""
    if width % heads or width % 4:
        allowed = [count for count in range(1, width + 1) if not width % count and not width % 4]
        raise IncompatibleError(
            f"heads={heads} and 4, for sines and cosines of rows and columns, must divide the {whose} width of "
            f"{width}; use {', '.join(map(str, allowed)) or 'another one'}"
        )


def draw_normal(module: nn.Module) -> None:
    """For `apply`: weights of linear layers and convolutions from a normal distribution of std .02, biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
