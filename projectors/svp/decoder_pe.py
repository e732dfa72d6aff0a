"""Decoder positional encoding: a superpixel's location in the mask decoder's own positional encoding.

Source: this project; the encoding itself is SAM's, https://arxiv.org/abs/2304.02643, appendix A (random Fourier
features, https://arxiv.org/abs/2006.10739).
Differs from the paper: SVP, https://arxiv.org/abs/2509.13676, has no such encoder.
"""

from math import log
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from projectors.contract import Dims, PartConfig
from projectors.layers import mlp, pool_by_area
from projectors.svp.regions import PositionEncoder, Regions, position_norm


class DecoderPE(PositionEncoder):
    """A small MLP of the decoder's positional encoding averaged over the superpixel, and of the superpixel's area."""

    required_inputs = frozenset({"decoder_pe"})

    class Config(PartConfig):
        name: Literal["decoder_pe"] = "decoder_pe"

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.encode = nn.Sequential(mlp(dims.decoder + 2, dims.vision, depth=2), position_norm(dims.vision))

    def forward(self, regions: Regions) -> Tensor:
        """(B, S, C) from the mean encoding of each region, its share of the frame, and the logarithm of that share."""
        encoding = regions.decoder_pe
        assert encoding is not None, "decoder_pe is a required input"
        areas = regions.areas((encoding.shape[1], encoding.shape[2]))
        location = pool_by_area(rearrange(encoding, "p h w -> 1 (h w) p"), areas)
        share = areas.mean(dim=-1, keepdim=True).to(location.dtype)
        pixel = 1 / regions.labels[0].numel()
        # 0 for a region of one pixel, 1 for the whole frame.
        size = 1 - share.clamp(min=pixel).log() / log(pixel)
        return self.encode(torch.cat([location, share, size], dim=-1))
