"""The contract of SVP's position encoders."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from einops import reduce
from torch import Tensor, nn

from projectors.contract import Dims, PartConfig
from projectors.layers import count_pixels, shares_of_cells

POSITION_GAIN = 0.25
"""Initial scale of position embeddings relative to normalised patches.

A mean of patches has a smaller variance than the patches, so with a gain of 1 the position would dominate the sum, most
of all for a fine-grained encoding (embedded validation scenes, 250 steps: decoder_pe gIoU .450 with 1, .511 with 0.25).
"""


@dataclass(frozen=True, slots=True)
class Regions:
    """The regions of a batch of images: superpixels, or patches as regions.

    Args:
        labels: (B, R, R) int64, 0..count-1 per image, -1 for no region.
        count: S, largest number of regions of an image; other images have empty regions.
        decoder_pe: (P, h, w), the mask decoder's dense positional encoding of the frame; None unless required.
    """

    labels: Tensor
    count: int
    decoder_pe: Tensor | None = None
    _counts: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def areas(self, size: tuple[int, int]) -> Tensor:
        """(B, S, h*w), the share of each cell of an h x w grid that belongs to each region.

        Pixels are counted once per grid. A grid that divides one of an earlier call adds up its counts, which is exact:
        the same pixels belong to a cell.
        """
        height, width = size
        if size not in self._counts:
            finer = (grid for grid in self._counts if grid[0] % height == 0 and grid[1] % width == 0)
            grid = next(finer, None)
            if grid is None:
                self._counts[size] = count_pixels(self.labels, self.count, size)
            else:  # the sum over both axes at once takes four times as long
                rows = reduce(self._counts[grid], "b s (h i) w -> b s h w", "sum", h=height)
                self._counts[size] = reduce(rows, "b s h (w j) -> b s h w", "sum", w=width)
        return shares_of_cells(self._counts[size], self.labels)


def position_norm(width: int) -> nn.LayerNorm:
    """The last layer of every position encoder, so that all start with the same scale."""
    norm = nn.LayerNorm(width)
    nn.init.constant_(norm.weight, POSITION_GAIN)
    return norm


class PositionEncoder(nn.Module, ABC):
    """Base class: one vector of the vision width per region, from its location and possibly its shape and size."""

    Config: ClassVar[type[PartConfig]]
    is_late: ClassVar[bool] = False
    """Whether it is frozen in the first training stage."""
    required_inputs: frozenset[str] = frozenset()

    def __init__(self, config: PartConfig, dims: Dims) -> None:
        super().__init__()
        self.config = config
        self.dims = dims

    @abstractmethod
    def forward(self, regions: Regions) -> Tensor:
        """(B, S, C); rows of empty regions are ignored."""
