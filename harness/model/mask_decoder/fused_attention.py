"""The attention of SAM's image encoder as one fused kernel, with the same parameters and results.

Source: segment-anything 1.0, `Attention` of `image_encoder.py`; the method is that of SAM-Fast,
https://github.com/pytorch-labs/segment-anything-fast, without its custom GPU kernels.
"""

from typing import Any

import torch.nn.functional as F
from einops import einsum, rearrange
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn


class FusedAttention(nn.Module):
    """Replaces the attention of one block; it has the same parameters under the same names."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv = attention.qkv
        self.proj = attention.proj
        self.rel_pos_h = attention.rel_pos_h if attention.use_rel_pos else None
        self.rel_pos_w = attention.rel_pos_w if attention.use_rel_pos else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        height, width = x.shape[1:3]
        query, key, value = rearrange(self.qkv(x), "b h w (three a d) -> three b a (h w) d", three=3, a=self.num_heads)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias(query, height, width))
        return self.proj(rearrange(attended, "b a (h w) d -> b h w (a d)", h=height))

    def _bias(self, query: Tensor, height: int, width: int) -> Tensor | None:
        """(B, a, h*w, h*w), relative position bias of the scores, from unscaled queries, as upstream."""
        if self.rel_pos_h is None or self.rel_pos_w is None:
            return None
        rows, columns = get_rel_pos(height, height, self.rel_pos_h), get_rel_pos(width, width, self.rel_pos_w)
        at = rearrange(query, "b a (h w) d -> b a h w d", h=height)
        by_row = einsum(at, rows.to(at.dtype), "b a h w d, h i d -> b a h w i")
        by_column = einsum(at, columns.to(at.dtype), "b a h w d, w j d -> b a h w j")
        return rearrange(by_row[..., None] + by_column[..., None, :], "b a h w i j -> b a (h w) (i j)")


def fuse_attention(encoder: ImageEncoderViT) -> None:
    """Replace the attention of every block in place, unless it is replaced already."""
    blocks: Any = encoder.blocks
    for block in blocks:
        if not isinstance(block.attn, FusedAttention):
            block.attn = FusedAttention(block.attn)
