"""The subobject embedding, superpixel by superpixel, with RoIAlign as a mean of interpolated samples, axis by axis."""

from math import ceil, floor
from typing import Any

import torch
from torch import Tensor

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, linear_flops

VARIANTS: list[dict[str, Any]] = [{"resolution": 5}, {"resolution": 8}]


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    assert batch.superpixels is not None
    labels, bins = batch.superpixels[image], projector.config.resolution
    side = len(labels)
    valid = batch.patch_mask[image].double()
    tokens = []
    for label in range(int(labels.max()) + 1):
        pixels = (labels == label).nonzero().tolist()
        top, bottom = min(y for y, _ in pixels), max(y for y, _ in pixels) + 1
        left, right = min(x for _, x in pixels), max(x for _, x in pixels) + 1
        box = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]).double() / side
        inside = _bins(top, bottom, bins, side) @ (labels == label).double() @ _bins(left, right, bins, side).T
        rows = _bins(top * HEIGHT / side, bottom * HEIGHT / side, bins, HEIGHT)
        columns = _bins(left * WIDTH / side, right * WIDTH / side, bins, WIDTH)
        weights = [
            valid[n] * sum(inside[i, j] * rows[i, n // WIDTH] * columns[j, n % WIDTH] for i, j in _pairs(bins))
            for n in range(HEIGHT * WIDTH)
        ]
        mean = sum(w * patch for w, patch in zip(weights, batch.patches[image], strict=True)) / sum(weights)
        value = torch.cat([box, inside.flatten(), mean])
        first, second, third = (projector.project[at].weight for at in (0, 2, 4))
        tokens.append(third @ (second @ (first @ value).clamp(min=0)).clamp(min=0))
    return tokens


def _pairs(bins: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(bins) for j in range(bins)]


def _bins(start: float, end: float, bins: int, length: int) -> Tensor:
    """(bins, length), weight of each cell in each bin; a cell's value is located at its centre."""
    samples = ceil((end - start) / bins)
    weights = torch.zeros(bins, length).double()
    for index in range(bins):
        for sample in range(samples):
            at = start + (end - start) / bins * (index + (sample + 0.5) / samples) - 0.5
            at = min(max(at, 0), length - 1)
            low = floor(at)
            weights[index, low] += (1 - (at - low)) / samples
            weights[index, min(low + 1, length - 1)] += (at - low) / samples
    return weights


def flops(projector: Any, batch: VisualFeatures) -> int:
    assert batch.superpixels is not None
    superpixels = int(batch.superpixels.max()) + 1
    bins = projector.config.resolution
    # Bins to rows of patches, then to patches, whose mean is taken.
    weights = 2 * superpixels * bins * HEIGHT * (bins + WIDTH)
    mean = 2 * superpixels * HEIGHT * WIDTH * projector.dims.vision
    return weights + mean + linear_flops(projector.project, superpixels)
