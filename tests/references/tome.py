"""Token merging, group by group and pair by pair."""

from typing import Any

import torch
from torch import Tensor

from projectors import VisualFeatures
from tests.projector_cases import HEADS
from tests.references.plain import HEIGHT, WIDTH, linear_flops, linear_layers

# The images have 36, 24 and 18 patches: of 24 tokens the second needs no merging, the third has fewer.
VARIANTS: list[dict[str, Any]] = [{"tokens": 5}, {"tokens": 24}, {"tokens": 1}]
PARAMETERS = [({}, 20_979_712)]


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    groups = [[n] for n in range(HEIGHT * WIDTH) if batch.patch_mask[image, n]]
    while len(groups) > projector.config.tokens:
        groups = _step(batch, image, groups, projector.config.tokens)
    return [linear_layers(projector.project, sum(batch.patches[image, n] for n in g) / len(g)) for g in groups]


def _step(batch: VisualFeatures, image: int, groups: list[list[int]], tokens: int) -> list[list[int]]:
    evens, odds = range(0, len(groups), 2), range(1, len(groups), 2)
    keys = [_key(batch, image, group) for group in groups]
    edges = []
    for even in evens:
        cosines = {odd: float(keys[even] @ keys[odd] / keys[even].norm() / keys[odd].norm()) for odd in odds}
        partner = max(cosines, key=lambda odd: cosines[odd])
        edges.append((cosines[partner], even, partner))
    edges.sort(reverse=True)
    merged = {at: list(group) for at, group in enumerate(groups)}
    for _, even, partner in edges[: min(len(groups) - tokens, len(groups) // 2)]:
        merged[partner] += merged.pop(even)
    return sorted(merged.values(), key=min)


def _key(batch: VisualFeatures, image: int, group: list[int]) -> Tensor:
    """Mean over the patches of the mean over the heads."""
    assert batch.keys is not None
    heads = batch.keys.shape[1]
    return torch.stack([batch.keys[image, head, n] for n in group for head in range(heads)]).mean(0)


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    n, c, tokens = projector.dims.num_patches, projector.dims.vision, projector.config.tokens
    total, count = 2 * tokens * n * c + linear_flops(projector.project, tokens), n
    while count > tokens:
        # Means of keys of one head's width, then similarities between the two halves.
        total += 2 * count * n * (c // HEADS) + 2 * ((count + 1) // 2) * (count // 2) * (c // HEADS)
        count = max(tokens, (count + 1) // 2)
    return total
