"""Qwen-VL's resampler: one cross-attention of a grid of learned queries to the patches, both with positions.

Source: Qwen-VL, https://arxiv.org/abs/2308.12966, section 2.1; the class is in the model's own repository on the hub
(Qwen/Qwen-VL, visual.py: `Resampler`, and `ln_post` and `proj` of `VisionTransformer`, which follow it); implemented
after vLLM's version of it (`Resampler2`; vllm-project/vllm@0531c22, vllm/model_executor/layers/resampler.py).
Licence: of the original, Tongyi Qianwen; written from the formulas, without that code.
Differs from the release: padding is not attended to; the grid is that of the vision encoder instead of 32x32.
"""

from math import isqrt
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import SquareCount, require_sincos_heads, resized, sincos
from projectors.registry import register

_EPS = 1e-6
_STD = 0.02


@register
class QwenResampler(Projector):
    """Works in the LLM's width; a query attends mostly to patches near its grid position, but to any patch."""

    official_names: ClassVar = {
        "attn_pool.query": "queries",
        "attn_pool.pos_embed": "positions",
        "attn_pool.kv_proj.": "enter.",
        "attn_pool.attn.": "attention.",
        "attn_pool.ln_q.": "query_norm.",
        "attn_pool.ln_kv.": "patch_norm.",
        # Names of the resampler module alone, and of vLLM.
        "query": "queries",
        "pos_embed": "positions",
        "kv_proj.": "enter.",
        "attn.": "attention.",
        "ln_q.": "query_norm.",
        "ln_kv.": "patch_norm.",
        "ln_post.": "norm.",
        "proj": "project",
    }
    official_prefix = "transformer.visual."
    official_modules = ("attn_pool.", "ln_post.", "proj")
    positions: Tensor

    class Config(ProjectorConfig):
        tokens: SquareCount = Field(default=256, ge=1, description="visual tokens of an image; a square number")
        heads: int = Field(default=32, ge=1, description="attention heads")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        width = dims.language
        require_sincos_heads(config.heads, width, "LLM's")
        # Persistent, because the release saves it with its weights.
        self.register_buffer("positions", sincos(isqrt(config.tokens), width))
        self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.tokens, width), std=_STD))
        self.enter = nn.Identity() if dims.vision == width else nn.Linear(dims.vision, width, bias=False)
        self.query_norm = nn.LayerNorm(width, eps=_EPS)
        self.patch_norm = nn.LayerNorm(width, eps=_EPS)
        self.attention = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.project = nn.Parameter(torch.randn(width, width) * width**-0.5)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=_STD)

    @property
    def max_tokens(self) -> int:
        """The configured number."""
        return len(self.queries)

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), the T queries row by row."""
        patches = self.patch_norm(self.enter(features.patches))
        queries = self.query_norm(self.queries) + self.positions
        attended, _ = self.attention(
            queries.expand(len(patches), -1, -1),
            patches + resized(self.positions, self.dims.grid),
            patches,
            key_padding_mask=~features.patch_mask,
            need_weights=False,
        )
        return VisualTokens.dense(self.norm(attended) @ self.project)
