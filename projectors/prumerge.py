"""PruMerge: keeps the patches with high CLS attention and adds to each its most similar patches, weighted by it.

Source: LLaVA-PruMerge, https://arxiv.org/abs/2403.15388, section 3; 42Shawn/LLaVA-PruMerge@1ca8b2b,
llava/model/multimodal_encoder/clip_encoder.py (`token_prune_merge_advanced`); LLaVA's `mlp2x_gelu` follows.
Licence: Apache-2.0.
Differs from the paper, as the release does: the weighted sum is not divided by its weights, and one additional token
holds the patches that were not kept.
Differs from the release: outliers are found per image, as in the release's training function, where its inference
function keeps the same number for every image of a batch; 32 patches are merged into each kept one also in training,
where the release's training function merges 16 (`nearest: 16`); padding is excluded; keys and the query of CLS are
those of the block whose output is used, where the release takes them from the block after it.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import mlp
from projectors.registry import register

Rank = Callable[[Tensor, Tensor], Tensor]
"""CLS attention (B, N), patch_mask (B, N) -> order in which patches are kept (B, N), N if a patch is not kept."""
REQUIRED_INPUTS = frozenset({"keys", "cls_query", "cls_key"})


class PruMergeConfig(ProjectorConfig):
    """Settings of PruMerge and PruMerge+."""

    nearest: int = Field(
        default=32, ge=1, description="most similar patches (cosine of keys) that are added to each kept patch"
    )


@register
class PruMerge(Projector):
    """A variable number of tokens for salient patches, and one for the rest."""

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
        """patches (B, N, C) -> embeds (B, T, D), by CLS attention; that of the patches not kept is last."""
        return prune_and_merge(features, outliers, self.nearest, self.project)


def prune_and_merge(features: VisualFeatures, rank_of: Rank, nearest: int, project: nn.Module) -> VisualTokens:
    """Merge each kept patch with its most similar ones, and the patches that were not kept; project the results."""
    assert features.keys is not None, "keys are a required input"
    # In full precision, because rounded scores could select other patches.
    with torch.no_grad(), torch.autocast(features.keys.device.type, enabled=False):
        keys = rearrange(features.keys, "b a n e -> b n (a e)")
        attention = _attention(features, keys)
        rank = rank_of(attention, features.patch_mask)
        is_kept = rank < rank.shape[1]
        members = F.pad(_most_similar(keys, features.patch_mask, nearest), (0, 0, 0, 1))
        members[:, -1] = features.patch_mask & ~is_kept
        own = F.pad(torch.eye(rank.shape[1], dtype=keys.dtype, device=keys.device), (0, 0, 0, 1))
        shares = members * attention[:, None] + own
        # The token of the patches that were not kept follows the kept ones of its image.
        order = F.pad(rank, (0, 1), value=rank.shape[1] - 0.5).argsort(dim=-1)[:, : int(is_kept.sum(-1).max()) + 1]
        shares, regions = (of.take_along_dim(order[..., None], dim=1) for of in (shares, members + own))
        mask = torch.arange(order.shape[1], device=order.device) <= is_kept.sum(dim=-1, keepdim=True)
        shares, regions = shares * mask[..., None], regions * mask[..., None]
    embeds = project(shares.to(features.patches.dtype) @ features.patches) * mask[..., None]
    return VisualTokens(embeds, mask, regions)


def outliers(attention: Tensor, patch_mask: Tensor) -> Tensor:
    """A `Rank` that keeps patches more than 1.5 interquartile ranges above the third quartile."""
    is_valid = attention.masked_fill(~patch_mask, torch.nan)
    quartiles = is_valid.nanquantile(attention.new_tensor([0.25, 0.75]), dim=-1, keepdim=True)
    bound = quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])
    rank = attention.argsort(dim=-1, descending=True).argsort(dim=-1)
    return rank.masked_fill(attention <= bound, attention.shape[1]).to(attention.dtype)


def _attention(features: VisualFeatures, keys: Tensor) -> Tensor:
    """(B, N), attention of CLS to each patch, with all heads as one; it sums to 1 with that of CLS to itself."""
    assert features.cls_query is not None, "cls_query is a required input"
    assert features.cls_key is not None, "cls_key is a required input"
    query, cls_key = (rearrange(of, "b a e -> b (a e) 1") for of in (features.cls_query, features.cls_key))
    scores = torch.cat([cls_key.mT, keys], dim=1) @ query / keys.shape[-1] ** 0.5
    is_valid = F.pad(features.patch_mask, (1, 0), value=True)
    return scores.squeeze(-1).masked_fill(~is_valid, -torch.inf).softmax(dim=-1)[:, 1:]


def _most_similar(keys: Tensor, patch_mask: Tensor, nearest: int) -> Tensor:
    """(B, N, N), 1 where the second patch is one of those most similar to the first, except itself."""
    directions = F.normalize(keys, dim=-1)
    cosine = (directions @ directions.mT).masked_fill(~patch_mask[:, None], -torch.inf)
    cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    best = cosine.topk(min(nearest, cosine.shape[-1] - 1), dim=-1)
    return torch.zeros_like(cosine).scatter(-1, best.indices, best.values.isfinite().to(cosine.dtype))
