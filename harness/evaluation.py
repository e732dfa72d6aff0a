"""EvaluationConfig first; scoring follows."""
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EvaluationConfig(BaseModel):
    """What is scored and measured of a trained cell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["validation", "test"] = "test"
    batch_images: int = Field(default=32, ge=1, description="images scored at a time")
    latency_repeats: int = Field(default=10, ge=1, description="timed runs of one image with one expression")
    gallery_images: int = Field(default=12, ge=0, description="images kept for the report's gallery")
