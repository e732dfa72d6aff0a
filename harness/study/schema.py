"""The schema of a study."""

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator

from harness.results.claims import Claim
from harness.system.uris import tracking_uri_problem

MAX_NAME = 100
"""Characters in the name of a study or an arm; the name is used for a folder and in tables."""
Choice = Any
"""One value of a search space: any value that YAML can express."""


class Range(BaseModel):
    """Values to sample between two bounds, inclusive; integers if both bounds are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: int | float = Field(description="smallest value")
    high: int | float = Field(description="largest value")
    log: bool = Field(default=False, description="sample uniformly in the logarithm")
    step: int | float | None = Field(default=None, gt=0, description="spacing of the values; not allowed with log")


def _form(value: object) -> str:
    return "range" if isinstance(value, dict | Range) else "choices"


Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Choice, ...], Field(min_length=1), Tag("choices")],
    Discriminator(_form),
]


class Search(BaseModel):
    """A search over settings within some of the arms."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    arms: tuple[str, ...] = Field(min_length=1, description="arms that are searched; the others run once")
    sampler: Literal["grid", "tpe"] = Field(
        default="grid", description="grid: every combination of the choices; tpe: Optuna's TPE sampler"
    )
    trials: int | None = Field(
        default=None, ge=1, description="points to sample in total, divided equally between the arms; tpe only"
    )
    space: dict[str, Values] = Field(
        min_length=1, description="dotted path of a setting -> list of choices, or low and high"
    )


class Tracking(BaseModel):
    """Where MLflow runs are stored; results do not depend on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = Field(default=None, description="URI of an MLflow server, database or file store")
    experiment: str | None = Field(
        default=None, min_length=1, description="name of the MLflow experiment; default: the study's name"
    )

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        problem = None if uri is None else tracking_uri_problem(uri)
        if problem is not None:
            raise ValueError(problem)
        return uri


def _several(value: object) -> object:
    """A single string as a list of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class StudySettings(BaseModel):
    """The top level of a study, with preset and overrides merged in."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    question: str = Field(min_length=1, description="the question that the study answers, as a sentence")
    name: str | None = Field(
        default=None,
        pattern=r"^\w[\w.-]*$",
        max_length=MAX_NAME,
        description="name of the study and of its run folder; default: the file's name",
    )
    extends: str | None = Field(default=None, description="path of a preset, relative to the study's folder")
    base: dict[str, Any] = Field(default={}, description="settings that all arms share")
    arms: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=MAX_NAME)], dict[str, Any] | None] = Field(
        min_length=1, description="differences from base by name; {} is base itself"
    )
    search: Search | None = Field(default=None, description="settings that are varied within arms")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        min_length=1, description="every arm runs every seed"
    )
    objectives: dict[str, Literal["maximize", "minimize"]] = Field(
        min_length=1, description="metric -> maximize or minimize"
    )
    baseline: Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)] = Field(
        description="arm or arms that the others are compared with; figures and the gallery show the first"
    )
    margin: float = Field(default=0.01, gt=0, lt=1, description="smallest relevant difference in gIoU")
    tolerance: float = Field(
        default=0.02,
        gt=0,
        lt=1,
        description="a verdict on a claim requires that the difference changed by less than this between half of the "
        "training steps and all of them",
    )
    claims: tuple[Claim, ...] = Field(default=(), description="statements that the report judges")
    tracking: Tracking = Field(default=Tracking(), description="MLflow store; that of the run folder by default")


def grid(space: Mapping[str, Range | tuple[Choice, ...]]) -> list[dict[str, Choice]]:
    """Every combination of the choices, the last path varying fastest."""
    choices = [values for values in space.values() if isinstance(values, tuple)]
    assert len(choices) == len(space), "a grid over a range is refused when the study is checked"
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*choices)]


def ends_of(space: Mapping[str, Range | tuple[Choice, ...]]) -> list[dict[str, Choice]]:
    """The first value of every path, and the last of every path."""
    ends = {
        path: (values.low, values.high) if isinstance(values, Range) else (values[0], values[-1])
        for path, values in space.items()
    }
    return [{path: pair[i] for path, pair in ends.items()} for i in (0, 1)]
