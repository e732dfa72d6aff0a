"""SVP: one visual token per superpixel of the image.

Source: SVP, https://arxiv.org/abs/2509.13676 (superpixel means, plus a position embedding, refined by SSA, then a
2-layer MLP); parts in `sspe.py` and `ssa.py`.
Licence: written from the paper, without the authors' code.
Differs from the paper, or is not in our sources: superpixels are averaged by the exact share of each patch that they
cover, so that one smaller than a patch still has a token; patches pass a layer norm first, because their scale differs
widely between DINOv2 and CLIP; superpixels are expected to cover the whole image; every part can be replaced or left
out.
"""

import torch
from einops import rearrange, repeat
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import mlp, pool_by_area, require_superpixels
from projectors.registry import register
from projectors.svp.parts import AggregationConfig, NoPosition, PositionConfig, build_aggregation, build_position
from projectors.svp.regions import Regions
from projectors.svp.ssa import SSA
from projectors.svp.sspe import SSPE


@register
class SVP(Projector):
    """One token per superpixel: many for complex images, few for simple ones."""

    class Config(ProjectorConfig):
        aggregation: AggregationConfig = Field(default=SSA.Config(), description="none or ssa")
        position: PositionConfig = Field(default=SSPE.Config(), description="none, bbox_mlp, sspe or decoder_pe")

        @model_validator(mode="after")
        def _settings_take_effect(self) -> "SVP.Config":
            per_patch = isinstance(self.aggregation, SSA.Config) and self.aggregation.key_position == "patch"
            if per_patch and isinstance(self.position, NoPosition.Config):
                raise ValueError("aggregation.key_position: patch cannot take effect with position: none")
            return self

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        require_superpixels(dims, "svp")
        self.norm = nn.LayerNorm(dims.vision)
        self.position = build_position(config.position, dims)
        self.aggregation = build_aggregation(config.aggregation, dims)
        self.has_patch_positions = isinstance(config.aggregation, SSA.Config) and (
            config.aggregation.key_position == "patch"
        )
        self.project = mlp(dims.vision, dims.language, depth=2)
        self.required_inputs = frozenset({"superpixels"}) | self.position.required_inputs

    @property
    def max_tokens(self) -> int:
        """One per superpixel."""
        return self.dims.max_superpixels

    def late_modules(self) -> tuple[nn.Module, ...]:
        """The SSPE, which the paper trains in the second stage."""
        return (self.position,) if self.position.is_late else ()

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, S, D), S the largest number of superpixels of an image."""
        assert features.superpixels is not None, "superpixels are a required input"
        count = int(features.superpixels.max()) + 1
        assert count <= self.max_tokens, f"{count} superpixels exceed max_superpixels={self.max_tokens}"
        regions = Regions(features.superpixels, count, features.decoder_pe)
        areas = regions.areas(self.dims.grid)
        mask = areas.any(dim=-1)
        # The scale and shift of the norm follow after the mean, where there are fewer vectors.
        patches = F.layer_norm(features.patches, self.norm.normalized_shape, eps=self.norm.eps)
        superpixels = pool_by_area(patches, areas) * self.norm.weight + self.norm.bias
        position = self.position(regions)
        if self.aggregation is not None:
            key_position = self._key_position(self.aggregation, regions, areas, position)
            superpixels = self.aggregation(superpixels, position, patches, self.norm, key_position, features.patch_mask)
        embeds = self.project(superpixels + position) * mask[..., None]
        return VisualTokens(embeds, mask, areas)

    def _key_position(self, aggregation: SSA, regions: Regions, areas: Tensor, position: Tensor) -> Tensor:
        """Projected positions of the keys: each patch as a region (1, N, W), or its superpixels' mean (B, N, W)."""
        if not self.has_patch_positions:
            keys = aggregation.key(position.to(aggregation.key.weight.dtype))
            return rearrange(areas.to(keys.dtype), "b s n -> b n s") @ keys
        height, width = self.dims.grid
        side = self.dims.frame
        rows = torch.arange(side, device=areas.device) * height // side
        columns = torch.arange(side, device=areas.device) * width // side
        patches = repeat(rows[:, None] * width + columns, "y x -> 1 y x")
        return aggregation.key(self.position(Regions(patches, height * width, regions.decoder_pe)))
