"""DeCo's pooling, cell by cell."""

from math import ceil, floor
from typing import Any

from torch import Tensor

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, linear_flops, linear_layers

VARIANTS: list[dict[str, Any]] = [{"tokens": 9}, {"tokens": 16}, {"tokens": 36}]
PARAMETERS = [({}, 20_979_712)]


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    side = round(projector.config.tokens**0.5)
    tokens = []
    for i in range(side):
        for j in range(side):
            rows = range(floor(i * HEIGHT / side), ceil((i + 1) * HEIGHT / side))
            columns = range(floor(j * WIDTH / side), ceil((j + 1) * WIDTH / side))
            cell = [row * WIDTH + column for row in rows for column in columns]
            valid = [batch.patches[image, n] for n in cell if batch.patch_mask[image, n]]
            if valid:
                tokens.append(linear_layers(projector.project, sum(valid) / len(valid)))
    return tokens


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    return linear_flops(projector.project, projector.config.tokens)
