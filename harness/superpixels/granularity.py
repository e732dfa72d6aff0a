"""Settings of the named granularities, and the thresholds on a SAM's own scores for each."""

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
    """Thresholds on a SAM's scores of its own masks.

    Args:
        stability_offset: shift of the mask threshold when stability is measured, in logits.
        thresholds: predicted IoU and stability by granularity; the pool uses those of the finest.
    """

    stability_offset: float
    thresholds: dict[str, tuple[float, float]]


META = Scores(1.0, {"coarse": (0.88, 0.95), "default": (0.86, 0.92), "fine": (0.80, 0.88), "finest": (0.70, 0.80)})
"""The default has FMA-WSSS's values, finer ones are looser; coarse has those of SAM's own mask generator."""
SCENES = Scores(0.25, {"coarse": (0.2, 0.8), "default": (0.2, 0.7), "fine": (0.2, 0.7), "finest": (0.2, 0.5)})
"""sam-scenes was never trained on points outside of objects, so its predictions there are unreliable, and its edges are
softer. Selected on 24 validation scenes of all domains, with an earlier training of the model: the mean best overlap of
the default was .852, at 8 superpixels per image; it was .79 to .84 for predicted IoU .5 to .8, and .77 to .85 for
rock-sand-water .05 to .8; above that, objects are split into parts."""


def scores_of(model: str) -> Scores:
    """Scores of a model by the name of its weights; a file is assumed to be a SAM trained like Meta's."""
    return SCENES if model == "sam-scenes" else META


def settings(model: str, granularity: str) -> dict[str, Any]:
    """All settings of a named granularity for this model."""
    scores = scores_of(model)
    min_iou, min_stability = scores.thresholds["default" if granularity == "adaptive" else granularity]
    return {
        **_SHAPES[granularity],
        "pred_iou_threshold": min_iou,
        "stability_threshold": min_stability,
        "stability_offset": scores.stability_offset,
    }


def pool_settings(model: str, points_per_side: int, stability_offset: float) -> PoolSettings:
    """A pool that contains the candidates of every granularity."""
    min_iou, min_stability = scores_of(model).thresholds["finest"]
    return PoolSettings(points_per_side, min_iou - WHOLE_IOU_BONUS, min_stability, stability_offset)
