"""SLIC: clusters of colour and position, compact and of similar size.

Source: Achanta et al. 2012, https://doi.org/10.1109/TPAMI.2012.120; scikit-image's implementation.
"""

import numpy as np
from pydantic import Field
from skimage import segmentation

from harness.data.example import Example
from harness.superpixels.partition import compact, merge
from harness.superpixels.source import SourceConfig


class Config(SourceConfig):
    """`count` clusters are initialized; the result may have a few less, never more than `count`."""

    compactness: float = Field(default=10.0, gt=0, le=1000, description="weight of position against colour (CIELAB)")
    min_size: float = Field(default=0.05, gt=0, le=1, description="smallest fragment kept, as a share of h * w / count")


def segment(config: Config, example: Example) -> np.ndarray:
    """(h, w) int16 labels."""
    labels = segmentation.slic(
        example.image,
        n_segments=config.count,
        compactness=config.compactness,
        min_size_factor=config.min_size,
        start_label=0,
    )
    return merge(compact(labels), example.image, config.count)
