"""SVA: each token attends to its own window of patches; its query depends on the mean of all patches.

Source: Cambrian-1, https://arxiv.org/abs/2406.16860, section 3 (Spatial Vision Aggregator);
cambrian-mllm/cambrian@539ffc3.
Licence: Apache-2.0.
Differs from the paper: one vision encoder, and no aggregators inside the LLM. With one encoder, attention to windows of
one patch, as in the released 576 tokens on a 24x24 grid, has no effect, so such windows are an error; the default is
144 tokens with windows of 2x2.
Differs from the release: padding is excluded from the mean of the image, a window of padding only has no token, and no
token marks the end of a row; the grid need not be square. The published weights are for four encoders and cannot be
loaded; weights for one encoder load under the names of the release.
"""

from collections.abc import Mapping
from math import gcd, isqrt
from typing import ClassVar

import torch
from einops import rearrange, repeat
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.errors import IncompatibleError
from projectors.layers import HeadedConfig, KeyValueNorm, SquareCount, mlp
from projectors.registry import register

MAX_DEPTH = 12
_LAYER_NAMES = {
    "pos_embed_0": "position",
    "proj_context.": "context.",
    "proj_in.": "merge.",
    "cross_attn.q_proj.0.": "query_norm.",
    "cross_attn.q_proj.1.": "query.",
    "cross_attn.k_proj_0.0.": "norms.",
    "cross_attn.k_proj_0.1.": "key.",
    "cross_attn.v_proj_0.1.": "value.",
    "cross_attn.o_proj.": "output.",
    "norm.": "norm.",
    "proj_out.linear_1.": "mlp.0.",
    "proj_out.linear_2.": "mlp.2.",
}


@register
class SVA(Projector):
    """A grid of tokens with one shared initial query, which differ by the content of their windows."""

    official_names: ClassVar = {
        "vision_query": "query",
        "mm_projector_aux_0.": "encode.",
        "mm_projector.": "project.",
        **{
            f"vision_sampler_0.layers.{layer}.{theirs}": f"layers.{layer}.{ours}"
            for layer in range(MAX_DEPTH)
            for theirs, ours in _LAYER_NAMES.items()
        },
    }
    official_prefix = "model."
    # Not `vision_sampler_layers.`, the aggregators inside the LLM.
    official_modules = ("mm_projector", "vision_query", *(f"vision_sampler_{digit}" for digit in range(10)))

    class Config(HeadedConfig, ProjectorConfig):
        tokens: SquareCount = Field(
            default=144, ge=1, description="visual tokens of an unpadded image; a square number"
        )
        depth: int = Field(default=3, ge=1, le=MAX_DEPTH, description="layers of attention to the window")
        width: int = Field(default=1024, ge=1, description="of queries, keys and values, all heads together")
        heads: int = Field(default=16, ge=1, description="attention heads")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.side = isqrt(config.tokens)
        height, width = dims.grid
        sides = [side for side in range(1, gcd(height, width) + 1) if not height % side and not width % side]
        allowed = [side**2 for side in sides if side**2 < dims.num_patches]
        if config.tokens not in allowed:
            raise IncompatibleError(
                f"tokens={config.tokens} does not divide the {height}x{width} patch grid into {self.side}x{self.side} "
                f"equal windows of two patches or more; use {', '.join(map(str, allowed))}"
            )
        self.window = (height // self.side, width // self.side)
        self.encode = nn.Sequential(*mlp(dims.vision, config.width, depth=2), nn.LayerNorm(config.width))
        self.query = nn.Parameter(torch.randn(1, config.width) * config.width**-0.5)
        num_positions = self.window[0] * self.window[1]
        self.layers = nn.ModuleList(_Layer(config.width, config.heads, num_positions) for _ in range(config.depth))
        self.project = mlp(config.width, dims.language, depth=2)

    @property
    def max_tokens(self) -> int:
        """The configured number, for an image without padding."""
        return self.side**2

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), the T windows row by row."""
        is_valid = features.patch_mask[..., None]
        patches = self.encode(features.patches)
        context = (patches * is_valid).sum(dim=1, keepdim=True) / is_valid.sum(dim=1, keepdim=True)
        windows, readable = self._windows(patches), self._windows(is_valid)[..., 0]
        mask = readable.any(dim=-1)
        # Windows of padding only attend to all their patches, because a softmax over no keys is NaN.
        readable = readable | ~mask[..., None]
        queries = repeat(self.query, "1 e -> b t e", b=len(patches), t=self.max_tokens)
        for layer in self.layers:
            queries = layer(queries, context, windows, readable)
        embeds = self.project(queries) * mask[..., None]
        return VisualTokens(embeds, mask, self._cells(is_valid.device) * features.patch_mask[:, None])

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """As in `Projector`; joins the release's separate norms of keys and values."""
        super().load_official(KeyValueNorm.join(state_dict, ".k_proj_0.0.", ".v_proj_0.0."))

    def _windows(self, values: Tensor) -> Tensor:
        """(B, N, E) -> (B, T, N / T, E)."""
        y, x = self.window
        return rearrange(values, "b (i y j x) e -> b (i j) (y x) e", i=self.side, y=y, j=self.side, x=x)

    def _cells(self, device: torch.device) -> Tensor:
        """(T, N), 1 where a patch lies in a token's window."""
        y, x = self.window
        return repeat(torch.eye(self.max_tokens, device=device), "t (i j) -> t (i y j x)", i=self.side, y=y, x=x)


class _Layer(nn.Module):
    """Attention of each query, merged with the image's mean, to its window; then a residual MLP."""

    def __init__(self, width: int, heads: int, num_positions: int) -> None:
        super().__init__()
        self.heads = heads
        self.context = nn.Linear(width, width, bias=False)
        self.merge = nn.Linear(2 * width, width, bias=False)
        self.position = nn.Parameter(torch.randn(num_positions, width))
        self.query_norm = nn.LayerNorm(width)
        self.norms = KeyValueNorm(width, 1e-5)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width, bias=False), nn.GELU(), nn.Linear(width, width, bias=False))

    def forward(self, queries: Tensor, context: Tensor, windows: Tensor, readable: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            queries: (B, T, E).
            context: (B, 1, E), the mean of the image.
            windows: (B, T, K, E), the K patches of each window.
            readable: (B, T, K) bool, False where a patch must not be attended to; never for all of a window.

        Returns:
            (B, T, E).
        """
        context = self.context(context).expand(-1, queries.shape[1], -1)
        merged = self.merge(torch.cat([queries, context], dim=-1))
        placed = windows + self.position
        for_keys, for_values = self.norms(placed, placed)
        query = rearrange(self.query(self.query_norm(merged)), "b t (h e) -> (b t) h 1 e", h=self.heads)
        key, value = (
            rearrange(states, "b t k (h e) -> (b t) h k e", h=self.heads)
            for states in (self.key(for_keys), self.value(for_values))
        )
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=rearrange(readable, "b t k -> (b t) 1 1 k")
        )
        attended = merged + self.output(rearrange(attended, "(b t) h 1 e -> b t (h e)", b=len(queries)))
        return queries + self.mlp(self.norm(attended))
