"""SSA: superpixels attend to the patches of the whole image.

Source: SVP, https://arxiv.org/abs/2509.13676 (query = coarse superpixel embedding, keys and values = patches; query
and keys share the superpixel's position embedding).
Differs from the paper, or is not in our sources: heads, width, one layer, residual form; positions are added to queries
and keys, not to values; `key_position: patch` is ours.
"""

from typing import Literal

from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from projectors.contract import Dims
from projectors.layers import HeadedConfig


class SSA(nn.Module):
    """Semantic superpixel aggregator: refines coarse superpixel embeddings by cross-attention to the patches."""

    class Config(HeadedConfig):
        name: Literal["ssa"] = "ssa"
        heads: int = Field(default=8, ge=1, description="attention heads")
        width: int = Field(default=256, ge=8, description="of queries, keys and values, all heads together")
        key_position: Literal["superpixel", "patch"] = Field(
            default="superpixel", description="position embedding in a patch's key: that of its superpixels, or its own"
        )

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(dims.vision)
        self.query = nn.Linear(dims.vision, config.width)
        # A key bias would cancel in the softmax.
        self.key = nn.Linear(dims.vision, config.width, bias=False)
        self.value = nn.Linear(dims.vision, config.width)
        self.output = nn.Linear(config.width, dims.vision)

    def forward(
        self,
        coarse: Tensor,
        position: Tensor,
        patches: Tensor,
        norm: nn.LayerNorm,
        key_position: Tensor,
        patch_mask: Tensor,
    ) -> Tensor:
        """Refine superpixels.

        Args:
            coarse: (B, S, C), means of patches.
            position: (B, S, C), added to the queries.
            patches: (B, N, C), of zero mean and unit variance.
            norm: its scale and shift are those of the patches. They are applied to the weights instead, which are
                smaller, so that frozen patches require no gradient. A shift of the keys would cancel in the softmax.
            key_position: (B, N, W) or (1, N, W), added to the keys after their projection `key`.
            patch_mask: (B, N) bool, False where a patch is padding.

        Returns:
            (B, S, C).
        """
        query = self._split(self.query(self.norm(coarse) + position))
        key = self._split(F.linear(patches, self.key.weight * norm.weight) + key_position)
        value = self._split(F.linear(patches, self.value.weight * norm.weight))
        mask = rearrange(patch_mask, "b n -> b 1 1 n")
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        # The weights of a query sum to one, so a constant of all values is added to their sum.
        return coarse + self.output(rearrange(attended, "b h t d -> b t (h d)") + self.value(norm.bias))

    def _split(self, values: Tensor) -> Tensor:
        return rearrange(values, "b t (h d) -> b h t d", h=self.heads)
