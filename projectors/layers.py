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
"""Type of a setting: a number of tokens that form a square grid."""


class HeadedConfig(PartConfig):
    """Settings of attention whose width is configurable."""

    width: int = Field(ge=1)
    heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self


def require_superpixels(dims: Dims, projector: str) -> None:
    """Raise IncompatibleError if the study has no superpixels."""
    if not dims.max_superpixels:
        raise IncompatibleError(f"{projector} requires superpixels, and the study has none; set base.superpixels")


def mlp(input_dim: int, output_dim: int, depth: int) -> nn.Sequential:
    """LLaVA's mlp{depth}x_gelu: `depth` linear layers, all hidden layers as wide as the output."""
    layers: list[nn.Module] = [nn.Linear(input_dim, output_dim)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(output_dim, output_dim)]
    return nn.Sequential(*layers)


def count_pixels(labels: Tensor, num_regions: int, size: tuple[int, int]) -> Tensor:
    """The number of pixels of each region in each cell of an h x w grid.

    Args:
        labels: (B, R, R) int64, a region id per pixel, -1 for no region.
        num_regions: S; every label is below it.
        size: (h, w) of the grid over the frame; it need not divide R.

    Returns:
        (B, S, h, w) int64.
    """
    batch = len(labels)
    rows, columns = _cell_of_pixel(labels, size)
    num_cells = size[0] * size[1]
    first = (torch.arange(batch, device=labels.device) * (num_regions + 1) + 1) * num_cells
    # Pixels of no region are counted in an extra first slot, which is dropped. 32-bit slots that are computed in place
    # take a fraction of the time of 64-bit ones in new memory.
    slots = labels.to(torch.int32, copy=True).mul_(num_cells).add_((rows[:, None] * size[1] + columns).int())
    slots += first.int()[:, None, None]
    counts = torch.bincount(slots.flatten(), minlength=batch * (num_regions + 1) * num_cells)
    return rearrange(counts, "(b s h w) -> b s h w", b=batch, h=size[0], w=size[1])[:, 1:]


def area_fractions(labels: Tensor, num_regions: int, size: tuple[int, int]) -> Tensor:
    """The exact share of each region in each cell of an h x w grid, counted in pixels.

    Args:
        labels, num_regions, size: as in `count_pixels`.

    Returns:
        (B, S, h*w), the share of a cell's pixels that have label s, in 0..1. A region smaller than a cell has a small
        share and is never lost.
    """
    return shares_of_cells(count_pixels(labels, num_regions, size), labels)


def shares_of_cells(counts: Tensor, labels: Tensor) -> Tensor:
    """Pixel counts (B, S, h, w) of a label map (B, R, R) -> shares of each cell (B, S, h*w), in 0..1."""
    size = counts.shape[-2], counts.shape[-1]
    rows, columns = _cell_of_pixel(labels, size)
    pixels = torch.bincount(rows, minlength=size[0])[:, None] * torch.bincount(columns, minlength=size[1])
    return rearrange(counts / pixels.clamp(min=1), "b s h w -> b s (h w)")


def _cell_of_pixel(labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The row (R,) of the grid's cells that a row of pixels belongs to, and the same for columns."""
    height, width = labels.shape[-2:]
    rows = torch.arange(height, device=labels.device) * size[0] // height
    return rows, torch.arange(width, device=labels.device) * size[1] // width


def region_masks(labels: Tensor, num_regions: int) -> Tensor:
    """A label map (B, R, R), as in `area_fractions`, -> one mask per region, (B, S, R, R) bool."""
    return labels[:, None] == torch.arange(num_regions, device=labels.device)[:, None, None]


def pool_by_area(patches: Tensor, areas: Tensor) -> Tensor:
    """Mean of the patches (B, N, C) weighted by areas (B, T, N): (B, T, C), zero for empty regions."""
    total = areas.sum(dim=-1, keepdim=True)
    weights = areas / total.where(total > 0, 1)
    return weights.to(patches.dtype) @ patches


class GridAverage(nn.Module):
    """Average pooling of valid patches to a coarse square grid; a cell of padding only is empty.

    Raises:
        IncompatibleError: the coarse grid is finer than the patch grid.
    """

    cells: Tensor

    def __init__(self, grid: tuple[int, int], num_cells: int) -> None:
        super().__init__()
        self.grid = grid
        self.side = isqrt(num_cells)
        if self.side > min(grid):
            raise IncompatibleError(
                f"tokens={num_cells} requires a {self.side}x{self.side} grid of tokens, finer than the "
                f"{grid[0]}x{grid[1]} patch grid; use at most {min(grid) ** 2}"
            )
        # The contribution of each patch to each cell; cells overlap if the grids do not divide evenly.
        contribution = self._mean(torch.eye(grid[0] * grid[1])[..., None])
        self.register_buffer("cells", rearrange((contribution > 0).float(), "n t 1 -> t n"), persistent=False)

    def forward(self, values: Tensor, patch_mask: Tensor) -> tuple[Tensor, Tensor]:
        """values (B, N, E), patch_mask (B, N) -> means (B, T, E) and mask (B, T), zero and False in empty cells."""
        is_valid = patch_mask[..., None].to(values.dtype)
        share = self._mean(is_valid)
        return self._mean(values * is_valid) / share.where(share > 0, 1), share[..., 0] > 0

    def regions(self, patch_mask: Tensor) -> Tensor:
        """(B, T, N), 1 where a valid patch contributes to a cell."""
        return self.cells * patch_mask[:, None]

    def _mean(self, values: Tensor) -> Tensor:
        maps = rearrange(values, "b (h w) e -> b e h w", h=self.grid[0])
        return rearrange(F.adaptive_avg_pool2d(maps, self.side), "b e i j -> b (i j) e")


def blocks_of(dims: Dims, scale: int, lowest: int = 1) -> dict[str, int]:
    """Axis sizes for einops to partition the grid into s x s blocks, in the pattern "b (h i w j) c".

    Raises:
        IncompatibleError: the scale does not divide the grid.
    """
    height, width = dims.grid
    if height % scale or width % scale:
        allowed = [side for side in range(lowest, gcd(height, width) + 1) if not gcd(height, width) % side]
        raise IncompatibleError(
            f"scale={scale} does not divide the {height}x{width} patch grid; "
            f"use {', '.join(map(str, allowed)) or 'another frame, because no scale divides this grid'}"
        )
    return {"h": height // scale, "w": width // scale, "i": scale, "j": scale}


class KeyValueNorm(nn.Module):
    """The layer norms of keys and values with joint parameters, of which the first half is the keys'.

    The keys' bias cancels in the softmax and has no gradient. It is kept because the releases have it.
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
        """Join a release's norms of keys and values, whose names contain `keys` and `values`, into one."""
        joined = dict(state_dict)
        for name, of_keys in state_dict.items():
            other = name.replace(keys, values)
            if other != name and other in joined and joined[other].shape == of_keys.shape:
                joined[name] = torch.cat([of_keys, joined.pop(other)])
        return joined


def one_region_a_patch(patch_mask: Tensor) -> Tensor:
    """(B, N) bool -> regions (B, N, N) of projectors with one token per valid patch."""
    return torch.diag_embed(patch_mask.float())


def sincos(side: int, width: int) -> Tensor:
    """(side^2, width): sines and cosines of the column, then of the row, with wavelengths 2 pi to almost 2 pi 10000."""
    quarter = width // 4
    waves = torch.arange(side)[:, None] * 10000 ** -(torch.arange(quarter) / quarter)
    along = torch.cat([waves.sin(), waves.cos()], dim=-1)
    columns, rows = along.expand(side, -1, -1), along[:, None].expand(-1, side, -1)
    return rearrange(torch.cat([columns, rows], dim=-1), "i j c -> (i j) c")


def resized(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings of a square grid (T, E), interpolated to another grid: (1, H * W, E)."""
    maps = rearrange(positions, "(h w) e -> 1 e h w", h=isqrt(len(positions)))
    return rearrange(F.interpolate(maps, size=grid, mode="bicubic", align_corners=False), "1 e h w -> 1 (h w) e")


def require_sincos_heads(heads: int, width: int, whose: str) -> None:
    """Raise IncompatibleError unless the number of heads, and 4 for `sincos`, divide a width."""
    if width % heads or width % 4:
        allowed = [count for count in range(1, width + 1) if not width % count and not width % 4]
        raise IncompatibleError(
            f"heads={heads} and 4, for sines and cosines of rows and columns, must divide the {whose} width of "
            f"{width}; use {', '.join(map(str, allowed)) or 'another one'}"
        )


def draw_normal(module: nn.Module) -> None:
    """For `Module.apply`: normal weights of std 0.02 in linear layers and convolutions, zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
