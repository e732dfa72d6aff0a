"""The named alternatives of which an SVP is put together; `position: none` in YAML is short for `{name: none}`."""

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from projectors.contract import Dims, PartConfig
from projectors.svp.bbox_mlp import BBoxMLP
from projectors.svp.decoder_pe import DecoderPE
from projectors.svp.regions import PositionEncoder, Regions
from projectors.svp.ssa import SSA
from projectors.svp.sspe import SSPE


class NoPosition(PositionEncoder):
    """Superpixels without a place: the LLM reads a bag of them."""

    class Config(PartConfig):
        name: Literal["none"] = "none"

    def forward(self, regions: Regions) -> Tensor:
        """(B, S, C) zeros."""
        return torch.zeros(len(regions.labels), regions.count, self.dims.vision, device=regions.labels.device)


class NoAggregation(PartConfig):
    """Superpixels stay the means of their patches."""

    name: Literal["none"] = "none"


def _from_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


PositionConfig = Annotated[
    Annotated[NoPosition.Config | BBoxMLP.Config | SSPE.Config | DecoderPE.Config, Field(discriminator="name")],
    BeforeValidator(_from_name),
]
AggregationConfig = Annotated[
    Annotated[NoAggregation | SSA.Config, Field(discriminator="name")], BeforeValidator(_from_name)
]

_POSITIONS: tuple[type[PositionEncoder], ...] = (NoPosition, BBoxMLP, SSPE, DecoderPE)


def build_position(config: PositionConfig, dims: Dims) -> PositionEncoder:
    """The encoder that a configuration belongs to."""
    return next(encoder for encoder in _POSITIONS if isinstance(config, encoder.Config))(config, dims)


def build_aggregation(config: AggregationConfig, dims: Dims) -> SSA | None:
    """The aggregator that a configuration belongs to; None for no aggregation."""
    return SSA(config, dims) if isinstance(config, SSA.Config) else None
