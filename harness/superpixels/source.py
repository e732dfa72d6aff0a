"""The interface of superpixel sources."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from harness.model.weights.resolution import WeightsRecord
    from harness.superpixels.candidates import CandidateRequest


class SourceConfig(BaseModel):
    """Settings of a source; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    count: int = Field(
        default=40, ge=1, le=1024, description="target number of superpixels, and the maximum of any image"
    )

    @property
    def max_superpixels(self) -> int:
        """Upper bound over all images."""
        return self.count


@dataclass(frozen=True, slots=True)
class Source:
    """A method that partitions an image into superpixels.

    Attributes:
        name: in YAML, and the name of its file.
        Config: its settings.
        segment: (config, example) -> (h, w) int16, a partition of the image with all of the ids 0..S-1; a source
            that selects from a SAM's masks takes (config, example, proposal). It reads and writes no file.
        weights: (config) -> the frozen models on which the result depends, besides the image and the settings.
        request: (config) -> which SAM's masks it selects from; None if the source uses no SAM.
    """

    name: str
    Config: type[SourceConfig]
    segment: Callable[..., np.ndarray]
    weights: Callable[[Any], "tuple[WeightsRecord, ...]"]
    request: Callable[[Any], "CandidateRequest | None"]
