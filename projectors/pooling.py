"""Pooling: averages the patches of each cell of a coarse grid, then projects.

Source: DeCo, https://arxiv.org/abs/2405.20985, section 3 (adaptive average pooling, then `mlp2x_gelu`);
yaolinli/DeCo@103416e.
Licence: BSD-3-Clause.
Differs from the paper: padding is excluded from the averages, and a cell of padding only has no token; a token count
that is not a square is an error, where DeCo's code rounds it down.
"""

from pydantic import Field

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import GridAverage, SquareCount, mlp
from projectors.registry import register


@register
class Pooling(Projector):
    """The simplest compressive projector: a fixed number of tokens, spread evenly over the image."""

    class Config(ProjectorConfig):
        tokens: SquareCount = Field(
            default=144, ge=1, description="visual tokens of an unpadded image; a square number"
        )

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.average = GridAverage(dims.grid, config.tokens)
        self.project = mlp(dims.vision, dims.language, depth=2)

    @property
    def max_tokens(self) -> int:
        """The configured number, for an image without padding."""
        return self.average.side**2

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), the T cells row by row."""
        pooled, mask = self.average(features.patches, features.patch_mask)
        return VisualTokens(self.project(pooled) * mask[..., None], mask, self.average.regions(features.patch_mask))
