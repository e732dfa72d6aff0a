"""Pixel shuffle: fold each s x s block of patches into one wide vector, then project.

Source: InternVL 1.5, https://arxiv.org/abs/2404.16821, section 3.1 (`head: mlp`); OpenGVLab/InternVL@2410d1d,
modeling_internvl_chat.py. SmolVLM, https://arxiv.org/abs/2504.05299, section 2 (`head: linear`, where nanoVLM folds
by 4); huggingface/nanoVLM@4e0c096, models/modality_projector.py.
Licence: MIT (InternVL), Apache-2.0 (nanoVLM).
Differs from the release: patches in the padding of the frame are zero, and a block of padding only has no token; the
grid need not be square.

Order of channels: the patches of a block row by row, each with all its channels (i, j, c). InternVL's `ps_version: v2`,
nanoVLM, and InternVL, Idefics3 and SmolVLM in transformers have this order. InternVL's `v1` has the same channels, but
tokens column by column; `torch.nn.functional.pixel_unshuffle` has the order (c, i, j).
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from einops import rearrange, reduce, repeat
from pydantic import Field
from torch import Tensor, nn

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import blocks_of
from projectors.registry import register

_OTHER_MODULES = ("vision_model.", "language_model.", "vision_encoder.", "decoder.")
"""Prefixes of other modules in checkpoints of InternVL and nanoVLM."""


@register
class PixelShuffle(Projector):
    """Fewer tokens without averaging: s^2 patches are concatenated before projection."""

    official_names: ClassVar = {"mlp1.": "project.", "proj.": "project.", "MP.proj.": "project."}

    class Config(ProjectorConfig):
        scale: int = Field(default=2, ge=1, description="side s of a block that becomes one token, in patches")
        head: Literal["mlp", "linear"] = Field(
            default="mlp",
            description="layer norm and two linear layers (InternVL), or one linear layer without bias (nanoVLM)",
        )

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.scale = config.scale
        self.blocks = blocks_of(dims, self.scale)
        self.project = _head(config.head, dims.vision * self.scale**2, dims.language)

    @property
    def max_tokens(self) -> int:
        """N / s^2, for an image without padding."""
        return self.dims.num_patches // self.scale**2

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, N / s^2, D), the blocks row by row."""
        is_valid = features.patch_mask
        mask = reduce(is_valid, "b (h i w j) -> b (h w)", "max", **self.blocks)
        blocks = rearrange(features.patches * is_valid[..., None], "b (h i w j) c -> b (h w) (i j c)", **self.blocks)
        embeds = self.project(blocks) * mask[..., None]
        regions = repeat(torch.eye(mask.shape[1], device=is_valid.device), "t (h w) -> t (h i w j)", **self.blocks)
        return VisualTokens(embeds, mask, regions * is_valid[:, None])

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """As in `Projector`; ignores the other modules of a whole checkpoint."""
        super().load_official({key: value for key, value in state_dict.items() if not key.startswith(_OTHER_MODULES)})


def _head(kind: str, block_dim: int, token_dim: int) -> nn.Module:
    if kind == "mlp":
        return nn.Sequential(
            nn.LayerNorm(block_dim), nn.Linear(block_dim, token_dim), nn.GELU(), nn.Linear(token_dim, token_dim)
        )
    linear = nn.Linear(block_dim, token_dim, bias=False)
    nn.init.normal_(linear.weight, std=0.02)
    return linear
