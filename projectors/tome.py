"""ToMe: merges the most similar patches, at most half of them per step, until a fixed number of tokens is left.

Source: Token Merging, https://arxiv.org/abs/2210.09461, section 3 (bipartite soft matching on keys, means weighted by
size); LLaVA's `mlp2x_gelu` follows.
Licence: the authors' code is CC-BY-NC-4.0; written from the paper, without that code.
Differs from the paper: all merging takes place after the encoder instead of in each of its blocks, so there is no
proportional attention, and keys are those of the last block, averaged like the patches as they merge; at each step and
in the result, tokens are in the order of their first patches, where the paper concatenates the two halves, so that from
the second step on other tokens are compared; padding is excluded, and an image with fewer patches than tokens keeps
them all.
"""

import torch
from einops import reduce, repeat
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.errors import IncompatibleError
from projectors.layers import mlp, one_region_a_patch, pool_by_area
from projectors.registry import register


@register
class ToMe(Projector):
    """Tokens of any shape: large groups of similar patches, which need not be connected, and single patches."""

    required_inputs = frozenset({"keys"})

    class Config(ProjectorConfig):
        tokens: int = Field(default=40, ge=1, description="visual tokens of an image with at least as many patches")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        if config.tokens > dims.num_patches:
            raise IncompatibleError(
                f"tokens={config.tokens} is more than the {dims.num_patches} patches of the "
                f"{dims.grid[0]}x{dims.grid[1]} grid; use at most {dims.num_patches}"
            )
        self.tokens = config.tokens
        self.project = mlp(dims.vision, dims.language, depth=2)

    @property
    def max_tokens(self) -> int:
        """The configured number."""
        return self.tokens

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), in the order of each token's first patch."""
        assert features.keys is not None, "keys are a required input"
        keys = reduce(features.keys, "b a n e -> b n e", "mean")
        # In full precision, because rounded similarities could select other pairs.
        with torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
            groups = _in_order(one_region_a_patch(features.patch_mask))
            while groups.shape[1] > self.tokens:
                groups = self._merge(groups, pool_by_area(keys, groups))
        mask = groups.any(dim=-1)
        embeds = self.project(pool_by_area(features.patches, groups)) * mask[..., None]
        return VisualTokens(embeds, mask, groups)

    def _merge(self, groups: Tensor, keys: Tensor) -> Tensor:
        """One step, which at most halves the number of groups.

        Args:
            groups: (B, T, N), 1 where a patch belongs to a group, in order.
            keys: (B, T, E), the mean of each group.

        Returns:
            (B, T', N), in order, T' the upper bound of the groups that are left.
        """
        into = self._destinations(keys, groups.any(dim=-1))
        merged = torch.zeros_like(groups).scatter_add(1, into[..., None].expand_as(groups), groups)
        return _in_order(merged)[:, : max(self.tokens, (groups.shape[1] + 1) // 2)]

    def _destinations(self, keys: Tensor, is_group: Tensor) -> Tensor:
        """(B, T): index of the group into which each group is merged, its own index if it is not merged.

        Ties go to the first group.
        """
        count = is_group.sum(dim=-1, keepdim=True)
        num_merges = torch.minimum((count - self.tokens).clamp(min=0), count // 2)
        directions = F.normalize(keys, dim=-1)
        similarity = directions[:, ::2] @ directions[:, 1::2].mT
        similarity = similarity.masked_fill(~is_group[:, None, 1::2], -torch.inf)
        best, partner = similarity.max(dim=-1)
        best = best.masked_fill(~is_group[:, ::2], -torch.inf)
        rank = best.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        into = repeat(torch.arange(keys.shape[1], device=keys.device), "t -> b t", b=len(keys)).clone()
        into[:, ::2] = torch.where(rank < num_merges, 2 * partner + 1, into[:, ::2])
        return into


def _in_order(groups: Tensor) -> Tensor:
    """Sort groups (B, T, N) by their first patches, empty ones last."""
    first_patch = groups.argmax(dim=-1).masked_fill(~groups.any(dim=-1), groups.shape[-1])
    return groups.take_along_dim(first_patch.argsort(dim=-1, stable=True)[..., None], dim=1)
