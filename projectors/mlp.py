"""MLP: every patch becomes one visual token.

Source: LLaVA-1.5, https://arxiv.org/abs/2310.03744, section 3.3 (`mlp2x_gelu`); haotian-liu/LLaVA@c121f04.
Licence: Apache-2.0.
Differs from the paper: patches in the padding of the frame have no token.
"""

from typing import ClassVar

from pydantic import Field

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import mlp, one_region_a_patch
from projectors.registry import register


@register
class MLP(Projector):
    """The uncompressed reference: one token per patch, row by row."""

    official_names: ClassVar = {"": "project."}
    official_prefix = "model.mm_projector."

    class Config(ProjectorConfig):
        depth: int = Field(default=2, ge=1, le=8, description="linear layers, with GELU between them")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.project = mlp(dims.vision, dims.language, config.depth)

    @property
    def max_tokens(self) -> int:
        """N: one token per patch."""
        return self.dims.num_patches

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, N, D)."""
        mask = features.patch_mask
        embeds = self.project(features.patches) * mask[..., None]
        return VisualTokens(embeds, mask, one_region_a_patch(mask))
