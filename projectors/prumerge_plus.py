"""PruMerge+: PruMerge that also keeps evenly spaced patches, so that every part of the image has a token.

Source: LLaVA-PruMerge, https://arxiv.org/abs/2403.15388, section 3 (PruMerge+); 42Shawn/LLaVA-PruMerge@1ca8b2b,
llava/model/multimodal_encoder/clip_encoder.py (`token_prune_merge_advanced_plus`, adaptive).
Licence: Apache-2.0.
Differs from the release: as in PruMerge; takes batches of any size, where the release's adaptive mode takes one image
at a time; the evenly spaced patches of an image without outliers are those of an image with one outlier, where the
release divides by zero. Its training function, which adds as many evenly spaced patches as there are outliers, is not
followed.
"""

from typing import ClassVar

import torch
from torch import Tensor

from projectors.contract import Dims, Projector, VisualFeatures, VisualTokens
from projectors.layers import mlp
from projectors.prumerge import REQUIRED_INPUTS, PruMergeConfig, outliers, prune_and_merge
from projectors.registry import register


@register
class PruMergePlus(Projector):
    """About four times the tokens of PruMerge: three evenly spaced ones per outlier."""

    required_inputs = REQUIRED_INPUTS
    official_names: ClassVar = {"0.": "project.0.", "2.": "project.2."}
    official_prefix = "model.mm_projector."
    Config = PruMergeConfig

    def __init__(self, config: PruMergeConfig, dims: Dims) -> None:
        super().__init__(config, dims)
        self.nearest = config.nearest
        self.project = mlp(dims.vision, dims.language, depth=2)

    @property
    def max_tokens(self) -> int:
        """N, and one for the patches that were not kept."""
        return self.dims.num_patches + 1

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D): outliers as in PruMerge, evenly spaced ones, the rest."""
        return prune_and_merge(features, _outliers_and_even, self.nearest, self.project)


def _outliers_and_even(attention: Tensor, patch_mask: Tensor) -> Tensor:
    """A `Rank`: the outliers, then evenly spaced patches."""
    rank = outliers(attention, patch_mask)
    count = patch_mask.sum(dim=-1, keepdim=True)
    is_outlier = rank < attention.shape[1]
    num_outliers = is_outlier.sum(dim=-1, keepdim=True)
    step = (count // num_outliers.clamp(min=1) // 3).clamp(min=1)
    # The release never takes the last patch.
    index = patch_mask.cumsum(dim=-1) - 1
    is_even = patch_mask & (index % step == 0) & (index < count - 1) & ~is_outlier
    return torch.where(is_even, num_outliers + is_even.cumsum(dim=-1) - 1, rank)
