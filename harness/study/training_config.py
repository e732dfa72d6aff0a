"""What a study may vary about training and scoring. Apart from what does it, so that reading a study loads no model."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CurriculumConfig(BaseModel):
    """What is asked first: only expressions of these families, for so many steps."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(ge=1, description="the first steps of all, which count among the others")
    families: tuple[str, ...] = Field(min_length=1, description="families of the data, such as attribute")


class TrainingConfig(BaseModel):
    """How every arm of a study is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(ge=1, description="optimiser steps of the second stage, in which everything learns")
    alignment_steps: int = Field(
        default=0,
        ge=0,
        description="steps of the first stage: LLM, its LoRA and the projector's late parts stay frozen",
    )
    curriculum: CurriculumConfig | None = Field(
        default=None, description="train on simple families of expressions first"
    )
    batch_images: int = Field(default=16, ge=1, description="images in a step")
    micro_batch_images: int | None = Field(
        default=None,
        ge=1,
        description="images whose activations are in memory together; gradients add up to those of batch_images. null: "
        "all of them",
    )
    expressions_per_image: int = Field(
        default=6, ge=1, description="expressions and questions asked of an image in a step"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: for matrices of hidden layers, those of a LoRA among them, AdamW for all else",
    )
    learning_rate: float = Field(
        default=3e-4, gt=0, le=10, description="highest, at the end of warm-up; a cosine to 0 follows"
    )
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="decoupled, as in AdamW")
    warmup_steps: int = Field(default=100, ge=0, description="of each stage, rising linearly")
    location_loss: float = Field(
        default=0.0,
        ge=0,
        le=1e3,
        description="weight of a loss that LISA has not: where the [SEG] state points, in the mask decoder's "
        "coordinates, should be on the target; the only one of masks for mask_decoder.prompt: points",
    )
    clip_norm: float = Field(default=1.0, gt=0, le=1e6, description="largest norm of the gradient of all parameters")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the hardware multiplies it natively, else float32"
    )


class EvaluationConfig(BaseModel):
    """What is scored and measured of a trained cell."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    split: str = Field(default="test", description="of the data; not the one that is trained on")
    batch_images: int = Field(default=16, ge=1, description="images scored at a time")
    latency_repeats: int = Field(default=10, ge=1, description="timed runs of a model, at least; one image each")
    gallery_images: int = Field(default=24, ge=0, description="images kept for the report's gallery")
