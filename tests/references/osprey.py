"""Osprey's mask extractor over one feature level, superpixel by superpixel and cell by cell."""

from math import floor
from typing import Any

import torch
from torch import Tensor

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, linear_flops

VARIANTS: list[dict[str, Any]] = [{"resolution": 7, "width": 16}, {"resolution": 60, "width": 12}]
# The mask's MLP and feat_linear as measured, without the linear layers of ConvNeXt's four levels; one of 1024 instead.
PARAMETERS = [({}, 18_094_080 + 4_198_400 + 1024**2 + 1024)]


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    assert batch.superpixels is not None
    labels = batch.superpixels[image]
    tokens = []
    for label in range(int(labels.max()) + 1):
        inside = (labels == label).tolist()
        level, merge = projector.content
        mean = _mean(inside, batch.patches[image])
        tokens.append(merge.weight @ (level.weight @ mean + level.bias) + merge.bias)
        value = _read(inside, projector.config.resolution)
        for at in (0, 2, 4):
            value = projector.shape[at].weight @ value + projector.shape[at].bias
            value = value.clamp(min=0) if at < 4 else value
        tokens.append(value)
    return tokens


def _mean(inside: list[list[bool]], patches: Tensor) -> Tensor:
    """Mean over the pixels, each with its patch weighted by one over the number of pixels in that patch."""
    side = len(inside)
    cells = [[y * HEIGHT // side * WIDTH + x * WIDTH // side for x in range(side)] for y in range(side)]
    total = [sum(row.count(n) for row in cells) for n in range(HEIGHT * WIDTH)]
    own = [cells[y][x] for y in range(side) for x in range(side) if inside[y][x]]
    return sum((patches[n] / total[n] for n in own), torch.zeros(())) / sum(1 / total[n] for n in own)


def _read(inside: list[list[bool]], resolution: int) -> Tensor:
    """Bilinear interpolation at the centre of each cell."""
    side = len(inside)
    locations = []
    for cell in range(resolution):
        at = min(max((cell + 0.5) * side / resolution - 0.5, 0), side - 1)
        low = floor(at)
        locations.append(((low, 1 - (at - low)), (min(low + 1, side - 1), at - low)))
    values = [
        sum(down * right * inside[y][x] for y, down in rows for x, right in columns)
        for rows in locations
        for columns in locations
    ]
    return torch.tensor(values).double()


def flops(projector: Any, batch: VisualFeatures) -> int:
    assert batch.superpixels is not None
    s, dims = int(batch.superpixels.max()) + 1, projector.dims
    return (
        2 * s * dims.num_patches * dims.vision + linear_flops(projector.content, s) + linear_flops(projector.shape, s)
    )
