"""Osprey: two tokens per superpixel, one for its mean patch and one for its shape.

Source: Osprey, https://arxiv.org/abs/2312.10032, section 3 (mask-aware visual extractor);
CircleRadon/Osprey@deb0e57, osprey/model/layer.py.
Licence: Apache-2.0.
Differs from the paper: one feature level, where Osprey adds up four of a ConvNeXt, so the published weights cannot be
loaded; the LLM takes the tokens of all superpixels, where Osprey's also takes all patches; superpixels replace the
masks that a user provides.
Differs from the release: superpixels are averaged by the exact share of each patch that they cover, where the release
resizes the mask bilinearly and counts a cell in full if the mask covers a pixel next to the cell's centre, which loses
regions between the centres.
"""

from einops import rearrange, repeat
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import area_fractions, pool_by_area, region_masks, require_superpixels
from projectors.registry import register


@register
class Osprey(Projector):
    """Pairs of tokens: a superpixel's content, then its location and shape, computed from its binary mask."""

    required_inputs = frozenset({"superpixels"})

    class Config(ProjectorConfig):
        resolution: int = Field(default=112, ge=2, le=256, description="side of the resized mask, in cells")
        width: int = Field(default=1024, ge=1, description="of the hidden layers")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        require_superpixels(dims, "osprey")
        self.resolution = config.resolution
        # Two linear layers without an activation, as in the release, which sums feature levels between them.
        self.content = nn.Sequential(nn.Linear(dims.vision, config.width), nn.Linear(config.width, dims.language))
        self.shape = nn.Sequential(
            nn.Linear(config.resolution**2, config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width),
            nn.ReLU(),
            nn.Linear(config.width, dims.language),
        )

    @property
    def max_tokens(self) -> int:
        """Two per superpixel."""
        return 2 * self.dims.max_superpixels

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, 2 S, D), the two tokens of a superpixel next to each other."""
        assert features.superpixels is not None, "superpixels are a required input"
        count = int(features.superpixels.max()) + 1
        assert 2 * count <= self.max_tokens, f"{count} superpixels exceed max_superpixels={self.dims.max_superpixels}"
        areas = area_fractions(features.superpixels, count, self.dims.grid)
        content = self.content(pool_by_area(features.patches, areas))
        masks = region_masks(features.superpixels, count).to(features.patches.dtype)
        # Masks as separate images, because interpolate copies images with many channels.
        masks = rearrange(masks, "b s y x -> (b s) 1 y x")
        masks = F.interpolate(masks, size=(self.resolution, self.resolution), mode="bilinear", align_corners=False)
        shape = self.shape(rearrange(masks, "(b s) 1 y x -> b s (y x)", s=count))
        mask = repeat(areas.any(dim=-1), "b s -> b (s two)", two=2)
        embeds = rearrange([content, shape], "two b s d -> b (s two) d") * mask[..., None]
        return VisualTokens(embeds, mask, repeat(areas, "b s n -> b (s two) n", two=2))
