"""Osprey: two tokens for each superpixel, one of its mean patch and one of its shape.

Source: Osprey, https://arxiv.org/abs/2312.10032, section 3 (mask-aware visual extractor);
CircleRadon/Osprey@deb0e57, osprey/model/layer.py.
Licence: Apache-2.0.
Differs from the paper: one feature level, where Osprey adds up four of a ConvNeXt, so that the published weights do not
fit; the tokens stand for the whole image, where Osprey reads all its patches too; superpixels take the place of masks
that a user points at.
Differs from the release: superpixels are averaged by the exact share of each patch that they cover, where the release
resizes the mask bilinearly and counts a cell in full if the mask covers a pixel next to the cell's centre, so that a
region between the centres is lost.
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
    """Tokens in pairs: what a superpixel holds, then where it lies and its shape, as read from its binary mask."""

    required_inputs = frozenset({"superpixels"})

    class Config(ProjectorConfig):
        resolution: int = Field(default=112, ge=2, le=256, description="side of the mask that is read, in cells")
        width: int = Field(default=1024, ge=1, description="of the hidden layers")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        require_superpixels(dims, "osprey")
        self.resolution = config.resolution
        # One linear layer after another: the release has the sum over its feature levels between the two.
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
        """Two for each superpixel of the image with most."""
        return 2 * self.dims.max_superpixels

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, 2 S, D), the two tokens of a superpixel side by side."""
        assert features.superpixels is not None, "the projector declares that it needs superpixels"
        count = int(features.superpixels.max()) + 1
        assert 2 * count <= self.max_tokens, f"{count} superpixels, more than the {self.dims.max_superpixels} declared"
        areas = area_fractions(features.superpixels, count, self.dims.grid)
        content = self.content(pool_by_area(features.patches, areas))
        masks = region_masks(features.superpixels, count).to(features.patches.dtype)
        # Each mask as an image of its own: of one image with many channels the library first makes a copy.
        masks = rearrange(masks, "b s y x -> (b s) 1 y x")
        masks = F.interpolate(masks, size=(self.resolution, self.resolution), mode="bilinear", align_corners=False)
        shape = self.shape(rearrange(masks, "(b s) 1 y x -> b s (y x)", s=count))
        mask = repeat(areas.any(dim=-1), "b s -> b (s two)", two=2)
        embeds = rearrange([content, shape], "two b s d -> b (s two) d") * mask[..., None]
        return VisualTokens(embeds, mask, repeat(areas, "b s n -> b (s two) n", two=2))
