"""Subobject embedding: an MLP of the box, the shape and the mean content of each superpixel.

Source: Subobject-level Image Tokenization, https://arxiv.org/abs/2402.14327 (embedding of tokens of any shape);
facts on ChenDelong1999/subobjects-VLM@bff128d, model/visual_token_embedding.py and model/modeling.py.
Licence: the original code has none; written from the formula, without that code.
Differs from the release: RoIAlign is the aligned version, with as many samples as a bin has pixels or patches, where
the release takes one sample per bin, of features that it first resizes to the output size; the shape has fractional
values, where the release rounds them to 0 or 1; a box is tight around its pixels, where the release's starts one pixel
earlier and, at the right and lower border of the frame, ends one pixel earlier; superpixels come from any source;
patches in the padding of the frame are excluded from the mean.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes, roi_align

from projectors.contract import Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens
from projectors.layers import area_fractions, pool_by_area, region_masks, require_superpixels
from projectors.registry import register


@register
class Subobject(Projector):
    """One token per superpixel with its location and shape as plain numbers: the simple baseline of SSPE."""

    required_inputs = frozenset({"superpixels"})

    class Config(ProjectorConfig):
        resolution: int = Field(default=32, ge=2, le=128, description="side of the grid over a box, in bins")

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
        """One per superpixel."""
        return self.dims.max_superpixels

    def forward(self, features: VisualFeatures) -> VisualTokens:
        """patches (B, N, C) -> embeds (B, S, D), S the largest number of superpixels of an image."""
        assert features.superpixels is not None, "superpixels are a required input"
        count = int(features.superpixels.max()) + 1
        assert count <= self.max_tokens, f"{count} superpixels exceed max_superpixels={self.max_tokens}"
        areas = area_fractions(features.superpixels, count, self.dims.grid)
        mask = areas.any(dim=-1)
        shapes = region_masks(features.superpixels, count)[mask]
        corners = masks_to_boxes(shapes) + torch.tensor([0, 0, 1, 1], device=shapes.device)
        inside = self._align(shapes, corners)
        corners = corners / self.dims.frame
        share = self._patch_weights(inside, corners)
        weights = share.new_zeros(areas.shape)
        weights[mask] = share
        mean = pool_by_area(features.patches, weights * features.patch_mask[:, None])[mask]
        left, top, right, bottom = corners.unbind(dim=-1)
        box = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=-1)
        tokens = self.project(torch.cat([box.to(mean.dtype), inside.flatten(1).to(mean.dtype), mean], dim=-1))
        embeds = tokens.new_zeros(*mask.shape, tokens.shape[-1])
        embeds[mask] = tokens
        return VisualTokens(embeds, mask, areas)

    def _align(self, shapes: Tensor, corners: Tensor) -> Tensor:
        """RoIAlign of K masks (K, R, R) at their corners (K, 4), in pixels: (K, r, r)."""
        own = torch.arange(len(shapes), device=shapes.device)
        rois = torch.cat([own[:, None], corners], dim=-1)
        return roi_align(shapes[:, None].to(corners.dtype), rois, self.resolution, aligned=True)[:, 0]

    def _patch_weights(self, inside: Tensor, corners: Tensor) -> Tensor:
        """Weight of each patch in the mean of RoIAligned features under `inside` (K, r, r): (K, N).

        These are the weights of RoIAlign, computed once for all channels. Aligning every channel of every superpixel
        would cost more than the rest of the projector.

        Args:
            corners: (K, 4), in 0..1 of the frame.
        """
        height, width = self.dims.grid
        left, top, right, bottom = corners.unbind(dim=-1)
        rows, columns = self._bins(top, bottom, height), self._bins(left, right, width)
        return (rows @ inside @ columns.mT).flatten(1)

    def _bins(self, starts: Tensor, ends: Tensor, length: int) -> Tensor:
        """RoIAlign's weight of each cell of an axis in each bin between starts and ends (K): (K, length, r)."""
        cells = torch.eye(length, dtype=starts.dtype, device=starts.device)
        first, last = torch.zeros_like(starts), torch.ones_like(starts)
        rois = torch.stack([first, first, starts * length, last, ends * length], dim=-1)
        return roi_align(cells[None, :, :, None], rois, (self.resolution, 1), aligned=True)[..., 0]
