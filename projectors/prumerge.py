"""PruMerge: keep the patches that CLS looks at, and add to each what is most alike, as much as CLS looks at that.

Source: LLaVA-PruMerge, https://arxiv.org/abs/2403.15388, section 3; 42Shawn/LLaVA-PruMerge@1ca8b2b,
llava/model/multimodal_encoder/clip_encoder.py (`token_prune_merge_advanced`); LLaVA's `mlp2x_gelu` follows.
Licence: Apache-2.0.
Differs from the paper, as the release does: what is added is not divided by its weights, and one more token holds the
patches that were not kept.
Differs from the release: each image has its own outliers, where the release finds those of a batch together; CLS looks
at patches alone, not at itself; padding takes no part; an image without outliers has the one token of all patches.
"""

from typing import ClassVar

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import mlp
from projectors.registry import register


@register
class PruMerge(Projector):
    """Tokens where the image says much at a glance, however many that are, and one for the rest of it."""

    needs = frozenset({"keys", "cls_query"})
    official_names: ClassVar = {"0.": "project.0.", "2.": "project.2."}
    official_prefix = "model.mm_projector."

    class Config(ProjectorConfig):
        nearest: int = Field(default=32, ge=1, description="patches, by the cosine of their keys, added to one kept")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.nearest = config.nearest
        self.project = mlp(dims.vision, dims.language, depth=2)

    @property
    def max_tokens(self) -> int:
        """N, and one for what was not kept."""
        return self.dims.num_patches + 1

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D): those CLS looks at most first, that of all not kept last."""
        assert features.keys is not None, "the projector declares that it needs keys"
        assert features.cls_query is not None, "the projector declares that it needs the query of CLS"
        # Rounded scores would keep other patches.
        with torch.no_grad(), torch.autocast(features.keys.device.type, enabled=False):
            keys = rearrange(features.keys, "b a n e -> b n (a e)")
            query = rearrange(features.cls_query, "b a e -> b (a e) 1")
            scores = rearrange(keys @ query, "b n 1 -> b n") / keys.shape[-1] ** 0.5
            attention = scores.masked_fill(~features.patch_mask, -torch.inf).softmax(dim=-1)
            rank = self._rank(attention, features.patch_mask)
            is_kept = rank < rank.shape[1]
            members = F.pad(self._alike(keys, features.patch_mask), (0, 0, 0, 1))
            members[:, -1] = features.patch_mask & ~is_kept
            own = F.pad(torch.eye(rank.shape[1], dtype=keys.dtype, device=keys.device), (0, 0, 0, 1))
            shares = members * attention[:, None] + own
            # The token of all not kept stands right after the kept ones of its image.
            order = F.pad(rank, (0, 1), value=rank.shape[1] - 0.5).argsort(dim=-1)[:, : int(is_kept.sum(-1).max()) + 1]
            shares, regions = (of.take_along_dim(order[..., None], dim=1) for of in (shares, members + own))
            mask = torch.arange(order.shape[1], device=order.device) <= is_kept.sum(dim=-1, keepdim=True)
            shares, regions = shares * mask[..., None], regions * mask[..., None]
        embeds = self.project(shares.to(features.patches.dtype) @ features.patches) * mask[..., None]
        return VisualTokens(embeds, mask, regions)

    def _rank(self, attention: Tensor, patch_mask: Tensor) -> Tensor:
        """In which order patches are kept, N where they are not: attention and patch_mask (B, N) -> (B, N).

        Kept are outliers above: further over the third quartile than one and a half times the quartiles are apart.
        """
        real = attention.masked_fill(~patch_mask, torch.nan)
        quartiles = real.nanquantile(attention.new_tensor([0.25, 0.75]), dim=-1, keepdim=True)
        bound = quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])
        rank = attention.argsort(dim=-1, descending=True).argsort(dim=-1)
        return rank.masked_fill(attention <= bound, attention.shape[1]).to(attention.dtype)

    def _alike(self, keys: Tensor, patch_mask: Tensor) -> Tensor:
        """(B, N, N), 1 where the second patch is one of those most alike the first, itself not counted."""
        directions = F.normalize(keys, dim=-1)
        cosine = (directions @ directions.mT).masked_fill(~patch_mask[:, None], -torch.inf)
        cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        best = cosine.topk(min(self.nearest, cosine.shape[-1] - 1), dim=-1)
        return torch.zeros_like(cosine).scatter(-1, best.indices, best.values.isfinite().to(cosine.dtype))
