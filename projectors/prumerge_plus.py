"""PruMerge+: PruMerge, and patches kept at even distances besides, so that no part of the image goes without a token.

Source: LLaVA-PruMerge, https://arxiv.org/abs/2403.15388, section 3 (PruMerge+); 42Shawn/LLaVA-PruMerge@1ca8b2b,
llava/model/multimodal_encoder/clip_encoder.py (`token_prune_merge_advanced_plus`, adaptive).
Licence: Apache-2.0.
Differs from the release: as PruMerge does; works on batches, where the release fails on more than one image; an image
with many outliers keeps every patch, where the release fails.
"""

import torch
from torch import Tensor

from projectors.prumerge import PruMerge
from projectors.registry import register


@register
class PruMergePlus(PruMerge):
    """About four times the tokens of PruMerge: three spread evenly for each that CLS looks at."""

    def _rank(self, attention: Tensor, patch_mask: Tensor) -> Tensor:
        """As in PruMerge, those at even distances last: (B, N)."""
        rank = super()._rank(attention, patch_mask)
        count = patch_mask.sum(dim=-1, keepdim=True)
        is_outlier = rank < attention.shape[1]
        num_outliers = is_outlier.sum(dim=-1, keepdim=True)
        step = (count // num_outliers.clamp(min=1) // 3).clamp(min=1)
        # The release never takes the last patch.
        place = patch_mask.cumsum(dim=-1) - 1
        is_even = patch_mask & (place % step == 0) & (place < count - 1) & ~is_outlier
        return torch.where(is_even, num_outliers + is_even.cumsum(dim=-1) - 1, rank)
