"""The alternative parts of an SVP by name; `position: none` in YAML is short for `{name: none}`."""

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
    """No positions: the LLM takes an unordered set of superpixels."""

    class Config(PartConfig):
        name: Literal["none"] = "none"

    def forward(self, regions: Regions) -> Tensor:
        """(B, S, C) zeros."""
        return torch.zeros(len(regions.labels), regions.count, self.dims.vision, device=regions.labels.device)


class NoAggregation(PartConfig):
    """Superpixels are the means of their patches."""

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
    """Build the position encoder of a configuration."""
    return next(encoder for encoder in _POSITIONS if isinstance(config, encoder.Config))(config, dims)


def build_aggregation(config: AggregationConfig, dims: Dims) -> SSA | None:
    """Build the aggregator of a configuration; None for no aggregation."""
    return SSA(config, dims) if isinstance(config, SSA.Config) else None
