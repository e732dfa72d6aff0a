"""BBox-MLP: a small MLP of a superpixel's bounding box.

Source: named in SVP, https://arxiv.org/abs/2509.13676, as the simpler alternative to SSPE.
Differs from the paper: our sources do not state the widths or the encoding of the box; here it is [cx, cy, w, h]. A
final layer norm (`position_norm`) sets the scale of the embedding relative to the patches.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from projectors.contract import Dims, PartConfig
from projectors.layers import mlp
from projectors.svp.regions import PositionEncoder, Regions, position_norm


class BBoxMLP(PositionEncoder):
    """Encodes the location and extent of a superpixel, not its shape."""

    class Config(PartConfig):
        name: Literal["bbox_mlp"] = "bbox_mlp"

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.encode = nn.Sequential(mlp(4, dims.vision, depth=2), position_norm(dims.vision))

    def forward(self, regions: Regions) -> Tensor:
        """(B, S, C) from the boxes of the regions."""
        return self.encode(boxes(regions).to(next(self.parameters()).dtype))


def boxes(regions: Regions) -> Tensor:
    """(B, S, 4): centre x, centre y, width and height in 0..1 of the frame; boxes include their outermost pixels."""
    side = regions.labels.shape[-1]
    left, right = _extent(regions.areas((1, side)))
    top, bottom = _extent(regions.areas((side, 1)))
    return torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=-1)


def _extent(shares: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last non-zero position of (B, S, R), as (B, S) in 0..1 of R."""
    occupied = (shares > 0).to(shares.dtype)
    length = occupied.shape[-1]
    first = occupied.argmax(dim=-1)
    end = length - occupied.flip(-1).argmax(dim=-1)
    return first / length, end / length
