"""Pooling: average the patches of each cell of a coarse grid, then project.

Source: DeCo, https://arxiv.org/abs/2405.20985, section 3 (adaptive average pooling, then `mlp2x_gelu`);
yaolinli/DeCo@103416e.
Licence: BSD-3-Clause.
Differs from the paper: padding does not enter the averages, and a cell that holds nothing else gives no token; a token
count that is not a square is refused, where DeCo's code rounds it down.
"""

from math import isqrt

import torch
from einops import einsum, rearrange
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from projectors.contract import Dims, IncompatibleError, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import SquareCount, mlp
from projectors.registry import register


@register
class Pooling(Projector):
    """The plain compressive projector: a fixed budget, spent evenly over the image whatever is in it."""

    cells: Tensor

    class Config(ProjectorConfig):
        tokens: SquareCount = Field(
            default=144, ge=1, description="visual tokens of an unpadded image; a square number"
        )

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.side = isqrt(config.tokens)
        height, width = dims.grid
        if self.side > min(height, width):
            raise IncompatibleError(
                f"tokens={config.tokens} asks for a {self.side}x{self.side} grid of tokens, finer than the "
                f"{height}x{width} patch grid; use at most {min(height, width) ** 2}"
            )
        cells = einsum(_bins(height, self.side), _bins(width, self.side), "i h, j w -> i j h w")
        self.register_buffer("cells", rearrange(cells, "i j h w -> (i j) (h w)"), persistent=False)
        self.project = mlp(dims.vision, dims.language, depth=2)

    @property
    def max_tokens(self) -> int:
        """The configured number, for an image without padding."""
        return self.side**2

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), the T cells row by row."""
        real = features.patch_mask[..., None].to(features.patches.dtype)
        share = self._average(real)
        mask = share[..., 0] > 0
        pooled = self._average(features.patches * real) / share.where(share > 0, 1)
        embeds = self.project(pooled) * mask[..., None]
        return VisualTokens(embeds, mask, self.cells * features.patch_mask[:, None])

    def _average(self, values: Tensor) -> Tensor:
        """(B, N, C) -> (B, T, C), the plain mean over each cell."""
        maps = rearrange(values, "b (h w) c -> b c h w", h=self.dims.grid[0])
        return rearrange(F.adaptive_avg_pool2d(maps, self.side), "b c i j -> b (i j) c")


def _bins(length: int, num_bins: int) -> Tensor:
    """(num_bins, length), 1 where adaptive pooling counts a position to a bin; bins may overlap."""
    position, bin_index = torch.arange(length), torch.arange(num_bins)[:, None]
    start = bin_index * length // num_bins
    end = ((bin_index + 1) * length + num_bins - 1) // num_bins
    return ((position >= start) & (position < end)).float()
