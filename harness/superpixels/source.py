"""What every superpixel source has in common."""

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

    count: int = Field(default=40, ge=1, le=1024, description="superpixels aimed at; no image has more")

    @property
    def max_superpixels(self) -> int:
        """Upper bound over all images; the backbone relies on it."""
        return self.count


@dataclass(frozen=True, slots=True)
class Source:
    """A way to cut an image.

    Attributes:
        name: in YAML, and the name of its file.
        Config: its settings.
        segment: (config, example) -> (h, w) int16, a partition of the image with the ids 0..S-1, every one present; a
            source that chooses from a SAM's masks takes (config, example, proposal). It reads and writes no file.
        weights: (config) -> the frozen models that decide the result, beside the image and the settings.
        request: (config) -> which SAM's masks it chooses from; None for a source that chooses from none.
    """

    name: str
    Config: type[SourceConfig]
    segment: Callable[..., np.ndarray]
    weights: Callable[[Any], "tuple[WeightsRecord, ...]"]
    request: Callable[[Any], "CandidateRequest | None"]
