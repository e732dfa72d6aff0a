"""LDPv2: an MLP per patch, average pooling to a coarse grid, and a depthwise convolution over its cells.

Source: MobileVLM V2, https://arxiv.org/abs/2402.03766, section 3 (lightweight downsample projector);
Meituan-AutoML/MobileVLM@688fdec, mobilevlm/model/vision_projector.py (`ldpnetv2`).
Licence: Apache-2.0.
Differs from the release: padding is excluded from the averages; a cell of padding only has no token and is zero in the
convolution, like positions outside the grid; the grid need not be square; the number of tokens is configurable, where
the release has 144.
"""

from typing import ClassVar

from einops import rearrange
from pydantic import Field
from torch import nn

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import GridAverage, SquareCount, mlp
from projectors.registry import register


@register
class LDPv2(Projector):
    """Averages the MLP's output instead of the patches: few tokens, but the MLP runs on every patch."""

    official_names: ClassVar = {"mlp.mlp.": "project.", "peg.peg.0.": "neighbours."}
    official_prefix = "model.mm_projector."

    class Config(ProjectorConfig):
        tokens: SquareCount = Field(
            default=144, ge=1, description="visual tokens of an unpadded image; a square number"
        )

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.project = mlp(dims.vision, dims.language, depth=2)
        self.average = GridAverage(dims.grid, config.tokens)
        self.neighbours = nn.Conv2d(dims.language, dims.language, 3, padding=1, groups=dims.language)

    @property
    def max_tokens(self) -> int:
        """The configured number, for an image without padding."""
        return self.average.side**2

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), the T cells row by row."""
        pooled, mask = self.average(self.project(features.patches), features.patch_mask)
        maps = rearrange(pooled, "b (i j) d -> b d i j", i=self.average.side)
        embeds = pooled + rearrange(self.neighbours(maps), "b d i j -> b (i j) d")
        return VisualTokens(embeds * mask[..., None], mask, self.average.regions(features.patch_mask))
