"""Settings of training and evaluation, in a module of their own so that loading a study imports no model."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

DECAY = 0.2
"""Share of the steps of a budget over which the learning rate falls to zero."""


def decay_start(end: int, decay: float = DECAY) -> int:
    """The step from which the learning rate of a budget that ends at step `end` falls; at least one before the end."""
    return end - max(1, round(decay * end))


class CurriculumConfig(BaseModel):
    """A curriculum: the first steps use only expressions of some families."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(ge=1, description="number of first steps; included in the total number of steps")
    families: tuple[str, ...] = Field(min_length=1, description="families of the data, such as attribute")


class TrainingConfig(BaseModel):
    """How every arm of a study is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(
        ge=1, description="optimizer steps of the second stage, in which all trainable parameters are updated"
    )
    budgets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.5, 1.0),
        min_length=1,
        description="shares of the steps at which a cell is scored, ascending, the last 1. Before each, the learning "
        "rate decays in a short branch, so that the score is that of a training of this length",
    )
    alignment_steps: int = Field(
        default=0,
        ge=0,
        description="steps of the first stage, in which the LLM, its LoRA and late parts of the projector are frozen",
    )
    curriculum: CurriculumConfig | None = Field(
        default=None, description="train on simple families of expressions first"
    )
    batch_images: int = Field(default=16, ge=1, description="images per step")
    micro_batch_images: int | None = Field(
        default=None,
        ge=1,
        description="images whose activations are in the memory of a device together; gradients add up to those of "
        "batch_images. null: all of them",
    )
    devices: int = Field(
        default=1,
        ge=1,
        le=16,
        description="GPUs of one machine on which a cell is trained; each computes a part of batch_images, and the "
        "step is that of one GPU. Without GPUs: CPU processes",
    )
    expressions_per_image: int = Field(default=6, ge=1, description="expressions and questions per image and step")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: for matrices of hidden layers, including LoRA; AdamW for all other parameters",
    )
    learning_rate: float = Field(default=3e-4, gt=0, le=10, description="between warm-up and the decay to 0")
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="decoupled, as in AdamW")
    warmup_steps: int = Field(default=100, ge=0, description="steps of linear warmup in each stage")
    location_loss: float = Field(
        default=0.0,
        ge=0,
        le=1e3,
        description="weight of a loss that LISA does not have, on the location predicted from the [SEG] state, which "
        "should be on the target; required for mask_decoder.prompt: points",
    )
    clip_norm: float = Field(default=1.0, gt=0, le=1e6, description="largest norm of the gradient of all parameters")
    validation_images: int = Field(
        default=64,
        ge=0,
        description="first images of the validation split, on which loss and location accuracy are measured during "
        "training; 0 for none",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 if the hardware supports it natively, else float32"
    )

    @field_validator("budgets")
    @classmethod
    def _check_budgets(cls, budgets: tuple[float, ...]) -> tuple[float, ...]:
        if budgets[-1] != 1.0 or list(budgets) != sorted(set(budgets)):
            raise ValueError(f"found {list(budgets)}; give ascending shares of the steps, the last of them 1.0")
        return budgets

    @property
    def all_steps(self) -> int:
        """Optimizer steps of a training, with those of the branches of budgets before the last."""
        branches = [end - decay_start(end) for end in [*self.budget_steps][:-1]]
        return self.alignment_steps + self.steps + sum(branches)

    @property
    def budget_steps(self) -> dict[int, float]:
        """The budgets by their number of steps, ascending; of budgets with equally many steps, the last."""
        return {max(1, round(share * self.steps)): share for share in self.budgets}


class EvaluationConfig(BaseModel):
    """How a trained cell is evaluated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    split: str = Field(default="test", description="split of the data used for evaluation; not train")
    batch_images: int = Field(default=16, ge=1, description="images per evaluation batch")
    latency_repeats: int = Field(
        default=10, ge=1, description="smallest number of timed runs of a model; one image each"
    )
    gallery_images: int = Field(default=24, ge=0, description="images kept for the report's gallery")
