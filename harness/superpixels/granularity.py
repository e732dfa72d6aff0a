"""Settings of the named granularities. Each SAM has its own, in a file of the folder `sams`, with the reasons.

A cell contains the settings of its granularity, so that a changed file makes other cells. `adaptive` also uses those of
`finest`, which are not part of it: delete `superpixels` in the cache if they change.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from harness.superpixels.candidates import PoolSettings
from harness.superpixels.filter import WHOLE_IOU_BONUS

NAMES = ("coarse", "default", "fine", "finest", "adaptive")
MOBILE_SAM_FILE = "mobile_sam.pt"
"""Name of MobileSAM's checkpoint as published, by which its path is recognised before it is read."""
_FOLDER = Path(__file__).parent / "sams"


def settings(model: str, granularity: str) -> dict[str, Any]:
    """All settings of a named granularity for this model."""
    found = _read(_settings_name(model))
    return {**found[granularity], "stability_offset": found["stability_offset"]}


def pool_settings(model: str, points_per_side: int, stability_offset: float) -> PoolSettings:
    """A pool that contains the candidates of every granularity."""
    finest = settings(model, "finest")
    min_iou = finest["pred_iou_threshold"] - WHOLE_IOU_BONUS
    return PoolSettings(points_per_side, min_iou, finest["stability_threshold"], stability_offset)


def _settings_name(model: str) -> str:
    """The settings file of a model by the name of its weights; those of Meta's SAMs for any other file."""
    if model in ("sam-scenes", "mobile-sam"):
        return model
    return "mobile-sam" if Path(model).name == MOBILE_SAM_FILE else "meta"


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
