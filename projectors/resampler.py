"""Perceiver resampler: layers in which learned latents attend to the patches and to one another.

Source: Flamingo, https://arxiv.org/abs/2204.14198, section 3.1; mlfoundations/open_flamingo@655f693,
open_flamingo/src/helpers.py (`PerceiverResampler`), for single images.
Licence: MIT.
Differs from the release: padding is not attended to; a linear layer from the encoder's width to the LLM's follows,
which the release lacks, because its LLM attends to the latents by cross-attention.
"""

from typing import ClassVar

import torch
from einops import rearrange, repeat
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.registry import register

MAX_DEPTH = 12
_LAYER_NAMES = {
    "0.norm_media.": "patch_norm.",
    "0.norm_latents.": "latent_norm.",
    "0.to_q.": "query.",
    "0.to_kv.": "key_value.",
    "0.to_out.": "output.",
    "1.": "mlp.",
}


@register
class Resampler(Projector):
    """A fixed number of learned tokens for the whole image."""

    official_names: ClassVar = {
        "latents": "latents",
        "norm.": "norm.",
        **{
            f"layers.{layer}.{theirs}": f"layers.{layer}.{ours}"
            for layer in range(MAX_DEPTH)
            for theirs, ours in _LAYER_NAMES.items()
        },
    }
    official_prefix = "perceiver."
    unpublished = ("project.",)

    class Config(ProjectorConfig):
        tokens: int = Field(default=64, ge=1, description="latents, each a visual token")
        depth: int = Field(default=6, ge=1, le=MAX_DEPTH, description="layers of attention to patches and latents")
        heads: int = Field(default=8, ge=1, description="attention heads")
        head_width: int = Field(default=64, ge=1, description="of queries, keys and values of one head")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.latents = nn.Parameter(torch.randn(config.tokens, dims.vision))
        self.layers = nn.ModuleList(_Layer(dims.vision, config.heads, config.head_width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dims.vision)
        self.project = nn.Linear(dims.vision, dims.language)

    @property
    def max_tokens(self) -> int:
        """The configured number."""
        return len(self.latents)

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), in the order of the latents."""
        latents = repeat(self.latents, "t c -> b t c", b=len(features.patches))
        attended_mask = F.pad(features.patch_mask, (0, self.max_tokens), value=True)
        for layer in self.layers:
            latents = layer(latents, features.patches, attended_mask)
        return VisualTokens.dense(self.project(self.norm(latents)))


class _Layer(nn.Module):
    """Attention of latents to patches and latents, then an MLP."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.patch_norm = nn.LayerNorm(width)
        self.latent_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key_value = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, latents: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        """latents (B, T, C), patches (B, N, C), mask (B, N + T) bool -> (B, T, C)."""
        normed = self.latent_norm(latents)
        sources = self.key_value(torch.cat([self.patch_norm(patches), normed], dim=1))
        query = rearrange(self.query(normed), "b t (h e) -> b h t e", h=self.heads)
        key, value = rearrange(sources, "b n (kv h e) -> kv b h n e", kv=2, h=self.heads)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=rearrange(mask, "b n -> b 1 1 n"))
        latents = latents + self.output(rearrange(attended, "b h t e -> b t (h e)"))
        return latents + self.mlp(latents)
