"""Granularities are settings of a SAM, from its file in `harness/superpixels/sams`."""

import pytest

from harness.superpixels.candidates import PoolSettings
from harness.superpixels.granularity import NAMES, pool_settings, settings
from harness.superpixels.methods.sam import Config

PUBLISHED = {
    "sam-scenes": {
        "coarse": {
            "pred_iou_threshold": 0.2,
            "stability_threshold": 0.8,
            "rock_sand_water": 0.1,
            "min_area": 0.002,
            "count": 20,
        },
        "default": {
            "pred_iou_threshold": 0.2,
            "stability_threshold": 0.7,
            "rock_sand_water": 0.3,
            "min_area": 0.0005,
            "count": 40,
        },
        "fine": {
            "pred_iou_threshold": 0.2,
            "stability_threshold": 0.7,
            "rock_sand_water": 2.0,
            "min_area": 0.0005,
            "count": 64,
        },
        "finest": {
            "pred_iou_threshold": 0.2,
            "stability_threshold": 0.5,
            "rock_sand_water": 2.0,
            "min_area": 0.0005,
            "count": 128,
        },
    },
    "sam-vit-h": {
        "coarse": {
            "pred_iou_threshold": 0.88,
            "stability_threshold": 0.95,
            "rock_sand_water": 0.1,
            "min_area": 0.002,
            "count": 20,
        },
        "default": {
            "pred_iou_threshold": 0.86,
            "stability_threshold": 0.92,
            "rock_sand_water": 0.3,
            "min_area": 0.0005,
            "count": 40,
        },
        "fine": {
            "pred_iou_threshold": 0.8,
            "stability_threshold": 0.88,
            "rock_sand_water": 2.0,
            "min_area": 0.0005,
            "count": 64,
        },
        "finest": {
            "pred_iou_threshold": 0.7,
            "stability_threshold": 0.8,
            "rock_sand_water": 2.0,
            "min_area": 0.0005,
            "count": 128,
        },
    },
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_granularities_keep_their_settings(model):
    offset = {"stability_offset": 0.25 if model == "sam-scenes" else 1.0}
    for name, expected in PUBLISHED[model].items():
        points = {"points_per_side": 8 if name == "coarse" else 16}
        assert settings(model, name) == expected | points | offset
    assert settings(model, "adaptive") == settings(model, "default") | {"detail": 0.005}


def test_a_checkpoint_of_mobile_sam_is_recognised_by_its_file_name():
    assert settings("weights/mobile_sam.pt", "default") == settings("mobile-sam", "default")
    assert settings("weights/other.pt", "default") == settings("sam-vit-b", "default")
    assert settings("mobile-sam", "default") != settings("sam-vit-b", "default")


@pytest.mark.parametrize("model", ["sam-scenes", "sam-vit-b", "mobile-sam"])
def test_the_pool_contains_the_candidates_of_every_granularity(model):
    pool = pool_settings(model, 16, settings(model, "finest")["stability_offset"])
    for name in NAMES:
        config = Config(model=model, granularity=name)
        # A whole needs a predicted IoU that is lower by 0.1.
        assert pool.min_iou <= config.pred_iou_threshold - 0.1
        assert pool.min_stability <= config.stability_threshold
        assert config.stability_offset == pool.stability_offset


def test_the_pool_of_sam_scenes_keeps_its_settings():
    assert pool_settings("sam-scenes", 16, 0.25) == PoolSettings(16, 0.1, 0.5, 0.25)
