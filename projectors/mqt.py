"""MQT: learned queries of which any number may be asked, because training asks the first few as well as all.

Source: Matryoshka Query Transformer, https://arxiv.org/abs/2405.19315, section 3; gordonhu608/MQT-LLaVA@92c35d0,
llava/model/multimodal_projector/builder.py.
Licence: Apache-2.0; that file bears the notice of Alibaba Cloud's Qwen-VL, where its resampler comes from.
Differs from the paper: its queries look for what is in the image; in the release, followed here, the keys are positions
alone, so that every image is averaged with the same weights (`keys: as_released`). `keys: content` adds the patches
to these positions before their norm, which is our reading and no release of the authors.
Differs from the release: padding is not read; the number of queries is drawn in both training stages, where the first
asks all; positions are in full precision, where it stores half; the grid is that of the vision encoder, where it is
24x24.
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
    """The first tokens carry most, as those after them are often left out in training."""

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
        tokens: int = Field(default=256, ge=1, description="visual tokens of an image, max_queries at most")
        max_queries: SquareCount = Field(default=256, ge=1, description="learned queries; a square number")
        train_tokens: Literal["random", "fixed"] = Field(
            default="random", description="in training an even number, drawn for every batch, or as many as tokens"
        )
        keys: Literal["as_released", "content"] = Field(
            default="as_released", description="where patches lie, alike for all images, or also what they hold"
        )
        heads: int = Field(default=16, ge=1, description="attention heads")

        @model_validator(mode="after")
        def _queries_suffice(self) -> "MQT.Config":
            if self.tokens > self.max_queries:
                raise ValueError(f"tokens={self.tokens} is above max_queries={self.max_queries}; use it at most")
            if self.train_tokens == "random" and self.max_queries < 2:
                raise ValueError("train_tokens: random has nothing to draw from max_queries=1; use 4 or more")
            return self

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        width = dims.vision
        require_sincos_heads(config.heads, width, "vision encoder's")
        self.tokens, self.max_queries = config.tokens, config.max_queries
        self.draws = config.train_tokens == "random"
        self.reads_content = config.keys == "content"
        # Persistent, because the release has it among its weights.
        self.register_buffer("positions", sincos(isqrt(config.max_queries), width))
        self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.max_queries, width), std=0.02))
        self.query_norm = nn.LayerNorm(width, eps=_EPS)
        self.norms = KeyValueNorm(width, _EPS)
        self.attention = nn.MultiheadAttention(width, config.heads, batch_first=True)
        nn.init.trunc_normal_(self.attention.out_proj.weight, std=0.02)
        self.project = nn.Parameter(torch.randn(width, dims.language) * dims.language**-0.5)

    @property
    def max_tokens(self) -> int:
        """The configured number; all queries while training draws from them."""
        return self.max_queries if self.training and self.draws else self.tokens

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), in the order of the queries."""
        batch, count = len(features.patches), self._count()
        positions = resized(self.positions, self.dims.grid)
        keys, values = self.norms(features.patches + positions if self.reads_content else positions, features.patches)
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
        """As for every projector; the release has a norm of its own for keys and for values."""
        super().load_official(KeyValueNorm.join(state_dict, "ln_k.", "ln_v."))

    def _count(self) -> int:
        """T of this batch."""
        if self.training and self.draws:
            return 2 * int(torch.randint(1, self.max_queries // 2 + 1, (), device="cpu"))
        return self.tokens
