"""Subobject embedding: the box, the shape and the mean content of each superpixel, joined and put through an MLP.

Source: Subobject-level Image Tokenization, https://arxiv.org/abs/2402.14327 (embedding of tokens of any shape);
facts on ChenDelong1999/subobjects-VLM@bff128d, model/visual_token_embedding.py and model/modeling.py.
Licence: none is given with the original code; written from the formula, without that code.
Differs from the release: RoIAlign is the aligned one, with as many samples as a bin has pixels or patches, where the
release takes one sample a bin, of features that it first brings to the size of the output; the shape keeps the shares
that this gives, where the release makes each of them 0 or 1; a box is tight around its pixels, where the release begins
it one pixel earlier and, at the right and lower border of the frame, ends it one pixel earlier; superpixels come from
the study, of any source; patches in the padding of the frame do not enter the mean.
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
    """One token per superpixel that knows where it lies and its shape as plain numbers: the flat baseline of SSPE."""

    required_inputs = frozenset({"superpixels"})

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
        shapes = region_masks(features.superpixels, count)[mask]
        corners = masks_to_boxes(shapes) + torch.tensor([0, 0, 1, 1], device=shapes.device)
        inside = self._align(shapes, corners)
        corners = corners / self.dims.frame
        seen = self._seen(inside, corners)
        weights = seen.new_zeros(areas.shape)
        weights[mask] = seen
        mean = pool_by_area(features.patches, weights * features.patch_mask[:, None])[mask]
        left, top, right, bottom = corners.unbind(dim=-1)
        box = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=-1)
        tokens = self.project(torch.cat([box.to(mean.dtype), inside.flatten(1).to(mean.dtype), mean], dim=-1))
        embeds = tokens.new_zeros(*mask.shape, tokens.shape[-1])
        embeds[mask] = tokens
        return VisualTokens(embeds, mask, areas)

    def _align(self, shapes: Tensor, corners: Tensor) -> Tensor:
        """RoIAlign of each of K masks (K, R, R) at its corners (K, 4), in pixels: (K, r, r)."""
        own = torch.arange(len(shapes), device=shapes.device)
        rois = torch.cat([own[:, None], corners], dim=-1)
        return roi_align(shapes[:, None].to(corners.dtype), rois, self.resolution, aligned=True)[:, 0]

    def _seen(self, inside: Tensor, corners: Tensor) -> Tensor:
        """How much each patch enters the mean of RoIAligned features under `inside` (K, r, r): (K, N).

        The weights that RoIAlign gives to patches, once for all channels: to align every channel of every superpixel
        costs more than all else that this projector does.

        Args:
            corners: (K, 4), in shares of the frame.
        """
        height, width = self.dims.grid
        left, top, right, bottom = corners.unbind(dim=-1)
        rows, columns = self._bins(top, bottom, height), self._bins(left, right, width)
        return (rows @ inside @ columns.mT).flatten(1)

    def _bins(self, starts: Tensor, ends: Tensor, length: int) -> Tensor:
        """How much RoIAlign takes of each cell of an axis into each bin between starts and ends (K): (K, length, r)."""
        cells = torch.eye(length, dtype=starts.dtype, device=starts.device)
        first, last = torch.zeros_like(starts), torch.ones_like(starts)
        rois = torch.stack([first, first, starts * length, last, ends * length], dim=-1)
        return roi_align(cells[None, :, :, None], rois, (self.resolution, 1), aligned=True)[..., 0]
