"""PruMerge with evenly spaced patches, patch by patch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from projectors import VisualFeatures
from tests.references import prumerge
from tests.references.plain import HEIGHT, WIDTH

VARIANTS = prumerge.VARIANTS
PARAMETERS = prumerge.PARAMETERS
official_shapes = prumerge.official_shapes
OTHER_MODULES = prumerge.OTHER_MODULES


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    attention, keys = prumerge.cls_attention(batch, image)
    return prumerge.merged(projector, batch, image, _kept(attention), attention, keys)


def _kept(attention: dict[int, float]) -> list[int]:
    kept, valid = prumerge.outliers(attention), list(attention)
    step = max(len(valid) // max(len(kept), 1) // 3, 1)
    return kept + [n for n in valid[:-1:step] if n not in kept]


def flops(projector: Any, batch: VisualFeatures) -> int:
    return prumerge.flops_of(projector, len(_kept(prumerge.cls_attention(batch, 0)[0])) + 1)


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    kept = prumerge.official_outliers(batch, 0)
    step = int(1 / (len(kept) / (HEIGHT * WIDTH)))
    even = [n for n in torch.arange(0, HEIGHT * WIDTH - 1, int(step / 3)).tolist() if n not in kept]
    kept = torch.cat([kept, torch.tensor(even)])
    return prumerge.official_mlp(state, prumerge.official_tokens(batch, 0, kept))[None]
