"""What a position encoder of SVP is given, and what it must return."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from projectors.contract import Dims, PartConfig
from projectors.layers import area_fractions

POSITION_GAIN = 0.25
"""Of a position beside what its superpixel holds, at the start of training.

A mean of patches varies less than they do; a position of a patch's size drowns it, the more so the finer it tells
places apart (embedded validation scenes, 250 steps: decoder_pe gIoU .450 with 1, .511 with 0.25).
"""


@dataclass(frozen=True, slots=True)
class Regions:
    """Where the regions of a batch of images lie; superpixels, or patches taken as regions.

    Args:
        labels: (B, R, R) int64, 0..count-1 per image, -1 where there is none.
        count: S, regions of the image that has most; the others have empty ones.
        decoder_pe: (P, h, w), the mask decoder's dense positional encoding of the frame, where an encoder needs it.
    """

    labels: Tensor
    count: int
    decoder_pe: Tensor | None = None

    def areas(self, size: tuple[int, int]) -> Tensor:
        """(B, S, h*w), the share of each cell of an h x w grid that belongs to each region."""
        return area_fractions(self.labels, self.count, size)


def position_norm(width: int) -> nn.LayerNorm:
    """The last layer of a position encoder, so that all of them begin equally loud."""
    norm = nn.LayerNorm(width)
    nn.init.constant_(norm.weight, POSITION_GAIN)
    return norm


class PositionEncoder(nn.Module, ABC):
    """One vector of the vision width for each region: where it lies, and perhaps its shape and size."""

    Config: ClassVar[type[PartConfig]]
    is_late: ClassVar[bool] = False
    """Whether it stays as initialised in the first training stage."""
    required_inputs: frozenset[str] = frozenset()

    def __init__(self, config: PartConfig, dims: Dims) -> None:
        super().__init__()
        self.config = config
        self.dims = dims

    @abstractmethod
    def forward(self, regions: Regions) -> Tensor:
        """(B, S, C); what stands in the rows of empty regions is of no account."""
