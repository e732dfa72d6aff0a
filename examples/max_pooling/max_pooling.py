"""Max pooling: keep the largest value of each channel in each cell of a coarse grid, then project.

Source: no paper; an example of a projector in a package of its own.
Licence: Apache-2.0.
"""

from math import isqrt

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from projectors import Dims, IncompatibleError, Projector, ProjectorConfig, VisualFeatures, VisualTokens, register
from projectors.layers import mlp


@register
class MaxPooling(Projector):
    """As `pooling`, but what stands out in a cell survives whatever surrounds it."""

    class Config(ProjectorConfig):
        tokens: int = Field(default=16, ge=1, description="visual tokens of an unpadded image; a square number")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.side = isqrt(config.tokens)
        if self.side**2 != config.tokens or self.side > min(dims.grid):
            raise IncompatibleError(f"tokens={config.tokens} is no square number up to {min(dims.grid) ** 2}; use one")
        self.project = mlp(dims.vision, dims.language, depth=2)

    @property
    def max_tokens(self) -> int:
        """The configured number, for an image without padding."""
        return self.side**2

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), the T cells row by row."""
        patch_mask = features.patch_mask
        each_patch = torch.eye(patch_mask.shape[1], device=patch_mask.device)[None]
        regions = rearrange(self._largest(each_patch), "1 t n -> t n") * patch_mask[:, None]
        mask = regions.any(dim=-1)
        largest = self._largest(features.patches.masked_fill(~patch_mask[..., None], float("-inf")))
        embeds = self.project(largest.where(mask[..., None], 0)) * mask[..., None]
        return VisualTokens(embeds, mask, regions)

    def _largest(self, values: Tensor) -> Tensor:
        """(B, N, C) -> (B, T, C), the largest of each cell."""
        maps = rearrange(values, "b (h w) c -> b c h w", h=self.dims.grid[0])
        return rearrange(F.adaptive_max_pool2d(maps, self.side), "b c i j -> b (i j) c")
