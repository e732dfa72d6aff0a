"""Subobject embedding: the box, the shape and the mean content of each superpixel, joined and put through an MLP.

Source: Subobject-level Image Tokenization, https://arxiv.org/abs/2402.14327 (embedding of tokens of any shape);
facts on ChenDelong1999/subobjects-VLM@bff128d, model/visual_token_embedding.py and model/modeling.py.
Licence: none is given with the original code; written from the formula, without that code.
Differs from the release: RoIAlign is the aligned one, with as many samples as a bin has pixels or patches, where the
release takes one sample a bin, of features that it first brings to the size of the output; the shape keeps the shares
that this gives, where the release makes each of them 0 or 1; a box ends behind its last pixel, not on it; superpixels
come from the study, of any source; patches in the padding of the frame do not enter the mean.
"""

import torch
from einops import einsum, rearrange
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes, roi_align

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import area_fractions, require_superpixels
from projectors.registry import register


@register
class Subobject(Projector):
    """One token per superpixel that knows where it lies and its shape as plain numbers: the flat baseline of SSPE."""

    needs = frozenset({"superpixels"})

    class Config(ProjectorConfig):
        resolution: int = Field(default=32, ge=2, le=128, description="side of the grid laid over a box, in bins")

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        require_superpixels(dims, "subobject")
        self.resolution = config.resolution
        self.project = nn.Sequential(
            nn.Linear(4 + config.resolution**2 + dims.vision, dims.language, bias=False),
            nn.ReLU(),
            nn.Linear(dims.language, 4 * dims.language, bias=False),
            nn.ReLU(),
            nn.Linear(4 * dims.language, dims.language, bias=False),
        )

    @property
    def max_tokens(self) -> int:
        """As many as the image with most superpixels has."""
        return self.dims.max_superpixels

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, S, D), S that of the image with most superpixels."""
        assert features.superpixels is not None, "the projector declares that it needs superpixels"
        count = int(features.superpixels.max()) + 1
        assert count <= self.max_tokens, f"{count} superpixels, more than the {self.max_tokens} declared"
        areas = area_fractions(features.superpixels, count, self.dims.grid)
        mask = areas.any(dim=-1)
        image, label = mask.nonzero(as_tuple=True)
        shapes = features.superpixels[image] == label[:, None, None]
        tokens = self.project(self._describe(features, image, shapes))
        embeds = tokens.new_zeros(*mask.shape, tokens.shape[-1])
        embeds[mask] = tokens
        return VisualTokens(embeds, mask, areas)

    def _describe(self, features: VisualFeatures, image: Tensor, shapes: Tensor) -> Tensor:
        """Box, shape and mean of K superpixels, whose images are `image` (K) and shapes (K, R, R): (K, 4 + r^2 + C)."""
        height, width = self.dims.grid
        side = shapes.shape[-1]
        # Pixel coordinates are not exact in bfloat16.
        dtype = torch.promote_types(features.patches.dtype, torch.float32)
        corners = masks_to_boxes(shapes).to(dtype) + torch.tensor([0, 0, 1, 1], device=shapes.device)
        in_patches = corners * torch.tensor([width, height, width, height], device=shapes.device) / side
        real = features.patch_mask[..., None].to(dtype)
        maps = rearrange(torch.cat([features.patches * real, real], dim=-1), "b (h w) c -> b c h w", h=height)

        own = torch.arange(len(shapes), device=shapes.device)
        inside = self._align(rearrange(shapes, "k y x -> k 1 y x").to(dtype), own, corners)
        content = einsum(inside, self._align(maps, image, in_patches), "k one i j, k c i j -> k c")
        mean = content[:, :-1] / content[:, -1:]
        left, top, right, bottom = (corners / side).unbind(dim=-1)
        box = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=-1)
        return torch.cat([box, rearrange(inside, "k 1 i j -> k (i j)"), mean], dim=-1)

    def _align(self, maps: Tensor, index: Tensor, corners: Tensor) -> Tensor:
        """RoIAlign of maps (M, C, h, w) at corners (K, 4), each in the map of its index (K): (K, C, r, r)."""
        rois = torch.cat([index[:, None].to(corners.dtype), corners], dim=-1)
        return roi_align(maps, rois, self.resolution, aligned=True)
