"""What the names of granularities stand for, and what a SAM's own scores must be at each."""

from dataclasses import dataclass
from typing import Any

from harness.superpixels.candidates import PoolSettings
from harness.superpixels.filter import WHOLE_IOU_BONUS

_SHAPES: dict[str, dict[str, Any]] = {
    "coarse": {"points_per_side": 8, "rock_sand_water": 0.1, "min_area": 0.002, "count": 20},
    "default": {"points_per_side": 16, "rock_sand_water": 0.3, "min_area": 0.0005, "count": 40},
    "fine": {"points_per_side": 16, "rock_sand_water": 2.0, "min_area": 0.0005, "count": 64},
    "finest": {"points_per_side": 16, "rock_sand_water": 2.0, "min_area": 0.0005, "count": 128},
    "adaptive": {"points_per_side": 16, "rock_sand_water": 0.3, "min_area": 0.0005, "count": 40, "detail": 0.005},
}
NAMES = tuple(_SHAPES)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a SAM says of its own masks, and how much of that each granularity asks for.

    Args:
        stability_offset: by how much the cut-off moves when stability is measured, in logits.
        thresholds: predicted IoU and stability, by granularity; the pool keeps what the finest asks for.
    """

    stability_offset: float
    thresholds: dict[str, tuple[float, float]]


META = Scores(1.0, {"coarse": (0.88, 0.95), "default": (0.86, 0.92), "fine": (0.80, 0.88), "finest": (0.70, 0.80)})
"""FMA-WSSS's for the default, looser towards the finest; the coarse ones are those of SAM's own mask generator."""
SCENES = Scores(0.25, {"coarse": (0.2, 0.8), "default": (0.2, 0.7), "fine": (0.2, 0.7), "finest": (0.2, 0.5)})
"""sam-scenes never saw a point beside all objects, so what it predicts there means little, and its edges are softer.
Chosen on 24 validation scenes of all domains, with an earlier training of it: the default's mean best overlap was .852,
at 8 superpixels an image; .79 to .84 over predicted IoU .5 to .8, .77 to .85 over rock-sand-water .05 to .8; above it,
parts cut objects up."""


def scores_of(model: str) -> Scores:
    """By the name of the weights; a file is taken for a SAM trained like Meta's."""
    return SCENES if model == "sam-scenes" else META


def settings(model: str, granularity: str) -> dict[str, Any]:
    """Every setting that the name stands for with this model."""
    scores = scores_of(model)
    min_iou, min_stability = scores.thresholds["default" if granularity == "adaptive" else granularity]
    return {
        **_SHAPES[granularity],
        "pred_iou_threshold": min_iou,
        "stability_threshold": min_stability,
        "stability_offset": scores.stability_offset,
    }


def pool_settings(model: str, points_per_side: int, stability_offset: float) -> PoolSettings:
    """A pool that holds what any granularity may ask for."""
    min_iou, min_stability = scores_of(model).thresholds["finest"]
    return PoolSettings(points_per_side, min_iou - WHOLE_IOU_BONUS, min_stability, stability_offset)
