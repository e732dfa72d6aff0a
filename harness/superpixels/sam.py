"""SAM: automatic masks of a frozen SAM, filtered to the granularity that a study asks for.

Source: SVP, https://arxiv.org/abs/2509.13676; the filter is FMA-WSSS's, https://arxiv.org/abs/2312.03585.
Differs from the paper: what masks leave uncovered becomes superpixels too, fragments go to their nearest neighbour, and
of two masks the smaller owns what they share, so that the superpixels are a partition.

SAM is asked once per image; every setting but `model` and `pool_points_per_side` is a filter over its candidates.
"""

from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from pydantic import Field, model_validator

from harness.backbone.weights import WeightsRecord, resolve
from harness.data.example import Example
from harness.encodings import SamCache, frozen_sam
from harness.frame import Frame
from harness.superpixels.candidates import CandidateCache, Candidates, PoolSettings
from harness.superpixels.filter import WHOLE_IOU_BONUS, FilterSettings, choose, label_map, settle
from harness.superpixels.partition import compact, complete, merge
from harness.superpixels.source import SourceConfig

_POOL = PoolSettings()
_FINEST: dict[str, Any] = {
    "points_per_side": 16,
    "pred_iou_threshold": 0.70,
    "stability_threshold": 0.80,
    "rock_sand_water": 2.0,
    "min_area": 0.0005,
}
GRANULARITIES: dict[str, dict[str, Any]] = {
    "coarse": {
        "points_per_side": 8,
        "pred_iou_threshold": 0.88,
        "stability_threshold": 0.92,
        "rock_sand_water": 0.1,
        "min_area": 0.002,
        "count": 20,
    },
    "default": {
        "points_per_side": 16,
        "pred_iou_threshold": 0.86,
        "stability_threshold": 0.92,
        "rock_sand_water": 0.3,
        "min_area": 0.0005,
        "count": 40,
    },
    "fine": {
        "points_per_side": 16,
        "pred_iou_threshold": 0.80,
        "stability_threshold": 0.85,
        "rock_sand_water": 0.7,
        "min_area": 0.0005,
        "count": 64,
    },
    "finest": {**_FINEST, "count": 128},
}
GRANULARITIES["adaptive"] = {**GRANULARITIES["default"], "detail": 0.001}
"""What each name stands for; a key that a study gives itself takes precedence."""
_DEFAULT = GRANULARITIES["default"]
FEATURES = 8
"""Principal components of SAM's embedding that tell complex regions from plain ones."""
CELLS = 14
"""Cells a side of the grid along which `adaptive` splits where no mask does."""


class Config(SourceConfig):
    """A granularity by name, and any of its settings in place of the name's."""

    model: str = Field(default="sam-scenes", description="weight name of the SAM that proposes masks")
    granularity: Literal["coarse", "default", "fine", "finest", "adaptive"] = Field(
        default="default",
        description="adaptive: the default's, then split where SAM's embedding varies most until there are `count`",
    )
    pool_points_per_side: int = Field(default=16, ge=1, le=64, description="grid of points that SAM is asked about")
    points_per_side: int = Field(
        default=_DEFAULT["points_per_side"], ge=1, le=64, description="of these, the coarser grid whose masks are used"
    )
    pred_iou_threshold: float = Field(
        default=_DEFAULT["pred_iou_threshold"],
        ge=_POOL.min_iou + WHOLE_IOU_BONUS,
        le=1,
        description="predicted IoU must be above; for wholes, above 0.1 less",
    )
    stability_threshold: float = Field(default=_DEFAULT["stability_threshold"], ge=_POOL.min_stability, le=1)
    rock_sand_water: float = Field(
        default=_DEFAULT["rock_sand_water"],
        ge=0,
        le=2,
        description="a part is added where a smaller share of it lies inside any mask already there; above 1, always",
    )
    min_area: float = Field(
        default=_DEFAULT["min_area"], ge=0, le=0.5, description="smallest mask and fragment, as a share of the image"
    )
    detail: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="adaptive only: no split that explains less than this share of the embedding's variance",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The granularity's settings where none are given; an unknown name is left to its field to refuse."""
        return {**GRANULARITIES.get(given.get("granularity", "default"), _DEFAULT), **given}

    @model_validator(mode="after")
    def _settings_take_effect(self) -> "Config":
        if self.points_per_side > self.pool_points_per_side:
            raise ValueError(
                f"points_per_side={self.points_per_side} exceeds pool_points_per_side={self.pool_points_per_side}; "
                "SAM is asked at the pool's points only"
            )
        if self.detail > 0 and self.granularity != "adaptive":
            raise ValueError(f"detail={self.detail} cannot take effect with granularity {self.granularity!r}")
        return self

    def filter_settings(self, num_pixels: int) -> FilterSettings:
        """For an image of that size."""
        return FilterSettings(
            points_per_side=self.points_per_side,
            min_iou=self.pred_iou_threshold,
            min_stability=self.stability_threshold,
            max_overlap=self.rock_sand_water,
            min_area=self.min_area * num_pixels,
        )


def weights(config: Config) -> tuple[WeightsRecord, ...]:
    """The frozen model that decides, with the image and the settings, what comes out."""
    return (resolve(config.model),)


def pool(model: str, points_per_side: int) -> CandidateCache:
    """The candidates of one SAM."""
    return CandidateCache(SamCache(frozen_sam(model)), PoolSettings(points_per_side))


def segment(config: Config, example: Example) -> np.ndarray:
    """(h, w) int16 labels; SAM is asked where its candidates for this image are not in the cache."""
    asked = pool(config.model, config.pool_points_per_side)
    asked.ensure([example], lambda *_: None)
    candidates = asked.load(example)
    labels = merge(_partition(candidates, config, example), example.image, config.count)
    if config.granularity != "adaptive":
        return labels
    finest = Config.model_validate({**config.model_dump(), **_FINEST, "points_per_side": config.pool_points_per_side})
    return _split(labels, _partition(candidates, finest, example), _features(asked.embeddings, example), config)


def _partition(candidates: Candidates, config: Config, example: Example) -> np.ndarray:
    height, width = example.image.shape[:2]
    settings = config.filter_settings(height * width)
    chosen = choose(candidates, settings, config.pool_points_per_side)
    return complete(settle(label_map(chosen, height, width), settings.min_area))


def _split(labels: np.ndarray, finest: np.ndarray, features: np.ndarray, config: Config) -> np.ndarray:
    """Splits superpixels along finer masks and a grid of cells, where that explains most of the features' variance.

    It is done from below: all are cut to pieces, and the pieces of each are joined again, the most similar first.
    """
    height, width = labels.shape
    cells = (np.arange(height) * CELLS // height)[:, None] * CELLS + np.arange(width) * CELLS // width
    _, pieces = np.unique(np.stack([labels, finest, cells]).reshape(3, -1), axis=1, return_inverse=True)
    variance = ((features - features.mean((0, 1))) ** 2).sum()
    return merge(compact(pieces.reshape(height, width)), features, config.count, config.detail * variance, labels)


def _features(embeddings: SamCache, example: Example) -> np.ndarray:
    """(h, w, F) principal components of SAM's embedding, brought to the image's size."""
    embeddings.ensure([example], lambda *_: None)
    frame = Frame.of(example.image, embeddings.frame)
    at_pixels = frame.restore(principal_components(embeddings.load([example])[0], frame))
    return rearrange(at_pixels, "f h w -> h w f").numpy().astype(np.float64)


def principal_components(embedding: torch.Tensor, frame: Frame) -> torch.Tensor:
    """(P, g, g) -> (F, g, g), of the cells that hold a part of the image."""
    cells = embedding.flatten(1)
    inside = torch.from_numpy(frame.patch_mask((embedding.shape[-2], embedding.shape[-1])))
    centred = cells - cells[:, inside].mean(dim=1, keepdim=True)
    directions, _, _ = torch.linalg.svd(centred[:, inside], full_matrices=False)
    return (directions[:, :FEATURES].T @ centred).unflatten(1, embedding.shape[1:])
