"""Linear: every patch becomes one visual token, by a single linear layer.

Source: LLaVA, https://arxiv.org/abs/2304.08485, section 4.1 (`linear`); haotian-liu/LLaVA@c121f04.
Licence: Apache-2.0.
Differs from the paper: patches in the padding of the frame have no token.
"""

from typing import ClassVar

from torch import nn

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import one_region_a_patch
from projectors.registry import register


@register
class Linear(Projector):
    """The minimal projector: maps the width of the patches to that of the LLM."""

    official_names: ClassVar = {"": "project."}
    official_prefix = "model.mm_projector."

    class Config(ProjectorConfig):
        """No settings."""

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.project = nn.Linear(dims.vision, dims.language)

    @property
    def max_tokens(self) -> int:
        """N: one token per patch."""
        return self.dims.num_patches

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, N, D)."""
        mask = features.patch_mask
        embeds = self.project(features.patches) * mask[..., None]
        return VisualTokens(embeds, mask, one_region_a_patch(mask))
