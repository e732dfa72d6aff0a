"""SAM: automatic masks of a frozen SAM, filtered to a granularity.

Source: SVP, https://arxiv.org/abs/2509.13676; the filter is FMA-WSSS's, https://arxiv.org/abs/2312.03585.
Differs from the paper: superpixels are a partition. Uncovered regions become superpixels too, small fragments are
merged into their nearest neighbour, and pixels of several masks belong to one of them (refer to `filter.py`).

SAM runs once per image; all settings except `model`, `pool_points_per_side` and `stability_offset` filter its
candidates.
"""

from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from pydantic import Field, model_validator

from harness.data.example import Example
from harness.data.frame import Frame
from harness.model.weights.resolution import WeightsRecord, resolve
from harness.superpixels.candidates import CandidateRequest, Candidates, Proposal
from harness.superpixels.filter import FilterSettings, absorb_fragments, choose, label_map
from harness.superpixels.granularity import NAMES, pool_settings, settings
from harness.superpixels.partition import compact, fill_uncovered, merge
from harness.superpixels.source import SourceConfig

_DEFAULT_MODEL = "sam-scenes"
_DEFAULT = settings(_DEFAULT_MODEL, "default")
FEATURES = 8
"""Number of principal components of SAM's embedding that measure the complexity of a region."""
CELLS = 14
"""Cells per side of the grid along which `adaptive` splits, in addition to masks."""


class Config(SourceConfig):
    """A named granularity, with optional overrides of its settings."""

    model: str = Field(default=_DEFAULT_MODEL, description="weight name of the SAM that proposes masks")
    granularity: Literal["coarse", "default", "fine", "finest", "adaptive"] = Field(
        default="default",
        description="adaptive: as default, then split where SAM's embedding varies most until there are `count`",
    )
    pool_points_per_side: int = Field(default=16, ge=1, le=64, description="grid of points that prompt SAM")
    points_per_side: int = Field(
        default=_DEFAULT["points_per_side"],
        ge=1,
        le=64,
        description="coarser grid among these points whose masks are used",
    )
    pred_iou_threshold: float = Field(
        default=_DEFAULT["pred_iou_threshold"],
        ge=0,
        le=1,
        description="predicted IoU must be above this; for wholes, above this minus 0.1",
    )
    stability_threshold: float = Field(
        default=_DEFAULT["stability_threshold"], ge=0, le=1, description="stability score must reach this"
    )
    stability_offset: float = Field(
        default=_DEFAULT["stability_offset"],
        gt=0,
        description="shift of the mask threshold when stability is measured, in logits",
    )
    rock_sand_water: float = Field(
        default=_DEFAULT["rock_sand_water"],
        ge=0,
        le=2,
        description="a part is kept if its share inside every mask kept before is below this; above 1, always",
    )
    min_area: float = Field(
        default=_DEFAULT["min_area"], ge=0, le=0.5, description="smallest mask and fragment, as a share of the image"
    )
    detail: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="adaptive only: a split must explain at least this share of the embedding's variance",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fills in the settings of the granularity; an unknown name is refused by its field."""
        name = values.get("granularity", "default")
        model = str(values.get("model", _DEFAULT_MODEL))  # another type is refused by the field
        return {**settings(model, name if name in NAMES else "default"), **values}

    @model_validator(mode="after")
    def _settings_take_effect(self) -> "Config":
        if self.points_per_side > self.pool_points_per_side:
            raise ValueError(
                f"points_per_side={self.points_per_side} exceeds pool_points_per_side={self.pool_points_per_side}; "
                "use at most the points of the pool"
            )
        finest = settings(self.model, "finest")
        for key in ("pred_iou_threshold", "stability_threshold"):
            if getattr(self, key) < finest[key]:
                raise ValueError(
                    f"{key}={getattr(self, key)}, but candidates of {self.model} have at least {finest[key]}; "
                    "use that or more"
                )
        if self.detail > 0 and self.granularity != "adaptive":
            raise ValueError(
                f"detail={self.detail} cannot take effect with granularity {self.granularity!r}; use adaptive"
            )
        return self

    def filter_settings(self, num_pixels: int) -> FilterSettings:
        """The filter's settings for an image of that size."""
        return FilterSettings(
            points_per_side=self.points_per_side,
            min_iou=self.pred_iou_threshold,
            min_stability=self.stability_threshold,
            max_overlap=self.rock_sand_water,
            min_area=self.min_area * num_pixels,
        )


def weights(config: Config) -> tuple[WeightsRecord, ...]:
    """The frozen model on which the result depends."""
    return (resolve(config.model),)


def request(config: Config) -> CandidateRequest:
    """The candidates from which these settings select."""
    pool = pool_settings(config.model, config.pool_points_per_side, config.stability_offset)
    return CandidateRequest(config.model, pool, with_embedding=config.granularity == "adaptive")


def segment(config: Config, example: Example, proposal: Proposal) -> np.ndarray:
    """(h, w) int16 labels.

    Args:
        config: decides which masks become superpixels.
        example: the image.
        proposal: the SAM's masks of the image, and its embedding for the granularity `adaptive`.
    """
    labels = merge(_partition(proposal.candidates, config, example.size), example.image, config.count)
    if config.granularity != "adaptive":
        return labels
    finest = config.model_copy(
        update={
            **settings(config.model, "finest"),
            "points_per_side": config.pool_points_per_side,
            "stability_offset": config.stability_offset,
        }
    )
    assert proposal.embedding is not None, "adaptive splits by SAM's embedding"
    features = _features(proposal.embedding, proposal.frame)
    return _split(labels, _partition(proposal.candidates, finest, example.size), features, config)


def _partition(candidates: Candidates, config: Config, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    settings = config.filter_settings(height * width)
    selected = choose(candidates, settings, config.pool_points_per_side)
    return fill_uncovered(absorb_fragments(label_map(selected, height, width), settings.min_area))


def _split(labels: np.ndarray, finest: np.ndarray, features: np.ndarray, config: Config) -> np.ndarray:
    """Splits superpixels along finer masks and a grid of cells, where that explains most of the features' variance.

    It works bottom-up: all superpixels are split, and the pieces of each are merged again, the most similar first.
    """
    height, width = labels.shape
    cells = (np.arange(height) * CELLS // height)[:, None] * CELLS + np.arange(width) * CELLS // width
    maps = (labels, finest, cells)
    pieces = np.ravel_multi_index(maps, [int(each.max()) + 1 for each in maps])
    variance = ((features - features.mean((0, 1))) ** 2).sum()
    return merge(compact(pieces), features, config.count, config.detail * variance, labels)


def _features(embedding: torch.Tensor, frame: Frame) -> np.ndarray:
    """(h, w, F) principal components of SAM's embedding (P, g, g), resized to the image."""
    at_pixels = frame.restore(principal_components(embedding, frame))
    return rearrange(at_pixels, "f h w -> h w f").numpy().astype(np.float64)


def principal_components(embedding: torch.Tensor, frame: Frame) -> torch.Tensor:
    """(P, g, g) -> (F, g, g), over the cells that contain a part of the image."""
    cells = embedding.flatten(1)
    is_image = torch.from_numpy(frame.patch_mask((embedding.shape[-2], embedding.shape[-1])))
    centred = cells - cells[:, is_image].mean(dim=1, keepdim=True)
    directions, _, _ = torch.linalg.svd(centred[:, is_image], full_matrices=False)
    return (directions[:, :FEATURES].T @ centred).unflatten(1, embedding.shape[1:])
