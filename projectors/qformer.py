"""Q-Former: learned queries with self-attention in every layer and cross-attention to the patches in every other.

Source: BLIP-2, https://arxiv.org/abs/2301.12597, section 3.1; salesforce/LAVIS@506965b,
lavis/models/blip2_models/blip2.py and Qformer.py, as `Blip2QFormerModel` of transformers has it.
Licence: BSD-3-Clause.
Differs from the release: starts from random weights, where the release starts from BERT-base and is pre-trained on 129
million images without an LLM, so it learns slowly here; queries do not attend to the CLS token, which the release's do,
or to padding; the release's layer norm after the vision encoder (`ln_vision`) is left to the encoder.
"""

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import HeadedConfig
from projectors.registry import register

MAX_DEPTH = 24
_LAYERS = "Qformer.bert.encoder.layer."
_NOT_OURS = re.compile(
    r"Qformer\.(cls\.|bert\.embeddings\.(word_embeddings|position_embeddings|position_ids)"
    r"|bert\.encoder\.layer\.\d+\.(intermediate|output)\.)"
    r"|(ln_vision|visual_encoder|opt_model|t5_model|llm_model)\."
)
"""Weights of the release's Q-Former that process text, and other modules of a whole checkpoint."""


@register
class QFormer(Projector):
    """A fixed number of learned tokens for the whole image."""

    official_names: ClassVar = {
        "query_tokens": "queries",
        "Qformer.bert.embeddings.LayerNorm.": "core.layernorm.",
        _LAYERS: "core.encoder.layer.",
        **{
            f"{_LAYERS}{layer}.{part}.self.": f"core.encoder.layer.{layer}.{part}.attention."
            for layer in range(MAX_DEPTH)
            for part in ("attention", "crossattention")
        },
        **{f"{llm}_proj.": "project." for llm in ("llm", "opt", "t5")},
    }

    class Config(HeadedConfig, ProjectorConfig):
        tokens: int = Field(default=32, ge=1, description="learned queries, each a visual token")
        depth: int = Field(default=12, ge=1, le=MAX_DEPTH, description="layers")
        reads_every: int = Field(default=2, ge=1, description="cross-attention to the patches in every n-th layer")
        width: int = Field(default=768, ge=1, description="of the queries; the MLPs are four times as wide")
        heads: int = Field(default=12, ge=1, description="attention heads")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        core = Blip2QFormerConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            cross_attention_frequency=config.reads_every,
            encoder_hidden_size=dims.vision,
        )
        self.queries = nn.Parameter(nn.init.normal_(torch.empty(1, config.tokens, config.width), std=0.02))
        self.core = Blip2QFormerModel(core)
        self.project = nn.Linear(config.width, dims.language)

    @property
    def max_tokens(self) -> int:
        """The configured number."""
        return self.queries.shape[1]

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, T, D), in the order of the queries."""
        attended = self.core(
            query_embeds=self.queries.expand(len(features.patches), -1, -1),
            encoder_hidden_states=features.patches,
            encoder_attention_mask=features.patch_mask,
        )
        return VisualTokens.dense(self.project(attended.last_hidden_state))

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """As in `Projector`; ignores weights that process text, the vision encoder and `ln_vision`."""
        super().load_official({name: value for name, value in state_dict.items() if not _NOT_OURS.match(name)})
