"""TokenPacker: each cell of a downsampled image attends to features of several encoder blocks in its region.

Source: TokenPacker, https://arxiv.org/abs/2407.02392, section 3; CircleRadon/TokenPacker@771a16e,
llava/model/multimodal_projector/builder.py and llava/model/multimodal_encoder/clip_encoder.py.
Licence: Apache-2.0 by its pyproject.toml; the repository holds no licence file.
Differs from the release: padding is excluded from attention and downsampling, and a region of padding only has no
token; the grid need not be square; all hidden layers have one width, where the release fixes that of CLIP-L (1024) in
some.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from einops import rearrange, repeat
from pydantic import Field, model_validator
from torch import Tensor, nn

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.errors import IncompatibleError
from projectors.layers import KeyValueNorm, blocks_of, mlp
from projectors.registry import register

_EPS = 1e-6


@register
class TokenPacker(Projector):
    """Each token starts as an average of a few patches and adds detail from its own region only."""

    official_names: ClassVar = {
        "q_proj_1.": "query.",
        "k_proj_1.": "key.",
        "v_proj_1.": "value.",
        "ln_q_1.": "query_norm.",
        "ln_k_1.": "norms.",
        "clip_attn.": "attention.",
        "mlp.": "project.",
    }
    official_prefix = "model.mm_projector."
    resize: Tensor

    class Config(ProjectorConfig):
        scale: int = Field(default=2, ge=2, description="side s of a token's region, in patches")
        layers: tuple[int, ...] = Field(
            default=(12, 16, 22, 23),
            min_length=1,
            description="blocks of the vision encoder that keys and values come from, counted from 1",
        )
        width: int = Field(default=1024, ge=1, description="of queries, keys and values, all heads together")
        heads: int = Field(default=8, ge=1, description="attention heads")

        @model_validator(mode="after")
        def _settings_fit_each_other(self) -> "TokenPacker.Config":
            if self.width % self.heads:
                raise ValueError(f"heads={self.heads} does not divide width={self.width}")
            if self.layers[0] < 1 or sorted(set(self.layers)) != list(self.layers):
                raise ValueError(f"layers={list(self.layers)} must be increasing, starting from 1 or above")
            return self

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.scale = config.scale
        self.blocks = blocks_of(dims, self.scale, lowest=2)
        if config.layers[-1] > dims.vision_blocks:
            raise IncompatibleError(
                f"layers={list(config.layers)} requires block {config.layers[-1]} of the vision encoder, of which only "
                f"{dims.vision_blocks} blocks run; use blocks from 1 to {dims.vision_blocks}"
            )
        self.needs_layers = config.layers
        self.query = nn.Linear(dims.vision, config.width, bias=False)
        self.key = mlp(len(config.layers) * dims.vision, config.width, depth=2)
        self.value = mlp(len(config.layers) * dims.vision, config.width, depth=2)
        self.query_norm = nn.LayerNorm(config.width, eps=_EPS)
        self.norms = KeyValueNorm(config.width, _EPS)
        self.attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.project = mlp(config.width, dims.language, depth=2)
        self.apply(_initialise)
        # Weights of bilinear downsampling to the centre of a region.
        weights = (1 - (torch.arange(self.scale) - (self.scale - 1) / 2).abs()).clamp(min=0)
        self.register_buffer("resize", torch.outer(weights, weights).flatten(), persistent=False)

    @property
    def max_tokens(self) -> int:
        """N / s^2, for an image without padding."""
        return self.dims.num_patches // self.scale**2

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) and layers (B, K, N, C) -> embeds (B, N / s^2, D), the regions row by row."""
        assert features.layers is not None, "layers are a required input"
        is_valid = self._regions(features.patch_mask[..., None])[..., 0]
        mask = is_valid.any(dim=-1)
        # Regions of padding only attend to all their patches, because a softmax over no keys is NaN.
        readable = is_valid | ~mask[..., None]
        layers = rearrange(features.layers, "b k n c -> b n (k c)")
        keys, values = self.norms(self.key(layers), self.value(layers))
        queries = self.query_norm(self.query(self._coarse(features.patches, is_valid)))
        attended, _ = self.attention(
            rearrange(queries, "b t e -> (b t) 1 e"),
            rearrange(self._regions(keys), "b t s e -> (b t) s e"),
            rearrange(self._regions(values), "b t s e -> (b t) s e"),
            key_padding_mask=~rearrange(readable, "b t s -> (b t) s"),
            need_weights=False,
        )
        embeds = self.project(rearrange(attended, "(b t) 1 e -> b t e", b=len(mask))) * mask[..., None]
        cells = repeat(torch.eye(mask.shape[1], device=mask.device), "t (h w) -> t (h i w j)", **self.blocks)
        return VisualTokens(embeds, mask, cells * features.patch_mask[:, None])

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """As in `Projector`; joins the release's separate norms of keys and values."""
        super().load_official(KeyValueNorm.join(state_dict, "ln_k_1.", "ln_v_1."))

    def _regions(self, values: Tensor) -> Tensor:
        """(B, N, E) -> (B, T, s^2, E)."""
        return rearrange(values, "b (h i w j) e -> b (h w) (i j) e", **self.blocks)

    def _coarse(self, patches: Tensor, is_valid: Tensor) -> Tensor:
        """(B, N, C) -> (B, T, C), bilinear over valid patches; their mean if all bilinear weights are zero."""
        shares = is_valid * self.resize
        shares = shares.where(shares.sum(dim=-1, keepdim=True) > 0, is_valid.to(shares.dtype))
        total = shares.sum(dim=-1, keepdim=True)
        return ((shares / total.where(total > 0, 1))[..., None] * self._regions(patches)).sum(dim=2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
