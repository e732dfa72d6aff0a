"""MQT: learned queries of which any first few can be used, because training samples their number.

Source: Matryoshka Query Transformer, https://arxiv.org/abs/2405.19315, section 3; gordonhu608/MQT-LLaVA@92c35d0,
llava/model/multimodal_projector/builder.py.
Licence: Apache-2.0; that file bears the notice of Alibaba Cloud's Qwen-VL, where its resampler comes from.
Differs from the paper: its queries attend by content. In the release, followed here, the keys are position embeddings
alone, so every image is averaged with the same weights (`keys: as_released`). `keys: content` adds the patches to the
position embeddings before their norm, which is our interpretation of the paper.
Differs from the release: padding is not attended to; the number of queries is sampled in both training stages, where
the release uses all in the first; positions are in full precision, where the release stores half; the grid is that of
the vision encoder instead of 24x24.
"""

from collections.abc import Mapping
from math import isqrt
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import KeyValueNorm, SquareCount, require_sincos_heads, resized, sincos
from projectors.registry import register

_EPS = 1e-6


@register
class MQT(Projector):
    """The first tokens carry most information, because training often leaves out the later ones."""

    official_names: ClassVar = {
        "query": "queries",
        "pos_embed": "positions",
        "ln_q.": "query_norm.",
        "ln_k.": "norms.",
        "attn.": "attention.",
        "proj": "project",
    }
    official_prefix = "model.query_abstractor."
    positions: Tensor

    class Config(ProjectorConfig):
        tokens: int = Field(default=256, ge=1, description="visual tokens per image, at most max_queries")
        max_queries: SquareCount = Field(default=256, ge=1, description="learned queries; a square number")
        train_tokens: Literal["random", "fixed"] = Field(
            default="random", description="in training, an even number sampled for every batch, or always `tokens`"
        )
        keys: Literal["as_released", "content"] = Field(
            default="as_released",
            description="as_released: positions only, the same for all images; content: also the patches",
        )
        heads: int = Field(default=16, ge=1, description="attention heads")

        @model_validator(mode="after")
        def _queries_suffice(self) -> "MQT.Config":
            if self.tokens > self.max_queries:
                raise ValueError(
                    f"tokens={self.tokens} is above max_queries={self.max_queries}; use at most {self.max_queries}"
                )
            if self.train_tokens == "random" and self.max_queries < 2:
                raise ValueError("train_tokens: random requires max_queries of 4 or more, not 1")
            return self

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        width = dims.vision
        require_sincos_heads(config.heads, width, "vision encoder's")
        self.tokens, self.max_queries = config.tokens, config.max_queries
        self.samples_count = config.train_tokens == "random"
        self.has_content_keys = config.keys == "content"
        # Persistent, because the release saves it with its weights.
        self.register_buffer("positions", sincos(isqrt(config.max_queries), width))
        self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.max_queries, width), std=0.02))
        self.query_norm = nn.LayerNorm(width, eps=_EPS)
        self.norms = KeyValueNorm(width, _EPS)
        self.attention = nn.MultiheadAttention(width, config.heads, batch_first=True)
        nn.init.trunc_normal_(self.attention.out_proj.weight, std=0.02)
        self.project = nn.Parameter(torch.randn(width, dims.language) * dims.language**-0.5)

    @property
    def max_tokens(self) -> int:
        """The configured number; in training with a random number of tokens, max_queries."""
        return self.max_queries if self.training and self.samples_count else self.tokens

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), in the order of the queries."""
        batch, count = len(features.patches), self._count()
        positions = resized(self.positions, self.dims.grid)
        keys, values = self.norms(
            features.patches + positions if self.has_content_keys else positions, features.patches
        )
        queries = self.query_norm(self.queries[:count] + self.positions[:count])
        attended, _ = self.attention(
            queries.expand(batch, -1, -1),
            keys.expand(batch, -1, -1),
            values,
            key_padding_mask=~features.patch_mask,
            need_weights=False,
        )
        return VisualTokens.dense(attended @ self.project)

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """As in `Projector`; joins the release's separate norms of keys and values."""
        super().load_official(KeyValueNorm.join(state_dict, "ln_k.", "ln_v."))

    def _count(self) -> int:
        """T of this batch."""
        if self.training and self.samples_count:
            return 2 * int(torch.randint(1, self.max_queries // 2 + 1, (), device="cpu"))
        return self.tokens
