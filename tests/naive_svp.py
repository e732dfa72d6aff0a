"""SVP without any optimisation, for batches: every product and sum in the place where the formulas have it.

`tests/references/svp.py` is simpler still, but takes seconds for an image of the size of the embedded preset.
"""

from typing import Any

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures


def naive_svp(projector: Any, features: VisualFeatures) -> Tensor:
    """Visual tokens (B, S, D) from the parameters of an SVP with SSPE and SSA."""
    assert features.superpixels is not None
    count = int(features.superpixels.max()) + 1
    areas = naive_areas(features.superpixels, count, projector.dims.grid).to(features.patches.dtype)
    patches = projector.norm(features.patches)
    total = areas.sum(dim=-1, keepdim=True)
    coarse = (areas / total.where(total > 0, 1)) @ patches
    position = naive_sspe(projector.position, features.superpixels, count, features.decoder_pe)
    if projector.has_patch_positions:
        height, width = projector.dims.grid
        cells = torch.arange(projector.dims.frame) * height // projector.dims.frame
        columns = torch.arange(projector.dims.frame) * width // projector.dims.frame
        labels = (cells[:, None] * width + columns)[None]
        patch_position = naive_sspe(projector.position, labels, height * width, features.decoder_pe)
    else:
        patch_position = areas.mT @ position
    refined = naive_ssa(projector.aggregation, coarse, position, patches, patch_position, features.patch_mask)
    return projector.project(refined + position) * areas.any(dim=-1)[..., None]


def naive_areas(labels: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """(B, S, h*w): the mean over the pixels of each cell of one mask per region."""
    side = labels.shape[-1]
    masks = (labels[:, None] == torch.arange(count)[:, None, None]).double()
    rows = (torch.arange(side) * size[0] // side == torch.arange(size[0])[:, None]).double()
    columns = (torch.arange(side) * size[1] // side == torch.arange(size[1])[:, None]).double()
    pixels = einsum(rows, masks, columns, "h y, b s y x, w x -> b s h w")
    return rearrange(pixels / (rows.sum(1)[:, None] * columns.sum(1)), "b s h w -> b s (h w)").float()


def naive_ssa(
    aggregation: Any, coarse: Tensor, position: Tensor, patches: Tensor, patch_position: Tensor, patch_mask: Tensor
) -> Tensor:
    """(B, S, C): attention of the superpixels to the patches, with the position of a patch in its key."""

    def split(values: Tensor) -> Tensor:
        return rearrange(values, "b t (h d) -> b h t d", h=aggregation.heads)

    query = split(aggregation.query(aggregation.norm(coarse) + position))
    key, value = split(aggregation.key(patches + patch_position)), split(aggregation.value(patches))
    logits = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~patch_mask[:, None, None], -torch.inf)
    return coarse + aggregation.output(rearrange(logits.softmax(-1) @ value, "b h t d -> b t (h d)"))


def naive_sspe(encoder: Any, labels: Tensor, count: int, decoder_pe: Tensor | None) -> Tensor:
    """(B, S, C): blocks of attention to the cells of each mask, each cell with a key and a value of its own."""
    areas = naive_areas(labels, count, (encoder.resolution, encoder.resolution))
    exists = areas.any(dim=-1)
    cells = encoder.cells(decoder_pe)
    memory = cells + areas[exists].to(cells.dtype)[..., None] * encoder.inside
    states = repeat(encoder.queries, "q w -> m q w", m=len(memory))
    for block in encoder.blocks:
        heads = [("q", block.query(block.attention_norm(states))), ("n", block.key(memory)), ("n", block.value(memory))]
        query, key, value = (rearrange(x, f"m {t} (h d) -> m h {t} d", h=block.heads) for t, x in heads)
        weights = F.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
        states = states + block.output(rearrange(weights @ value, "m h q d -> m q (h d)"))
        states = states + block.mlp(states)
    vectors = encoder.merge(rearrange(encoder.norm(states), "m q w -> m (q w)"))
    embeddings = vectors.new_zeros(*exists.shape, vectors.shape[-1])
    embeddings[exists] = vectors
    return embeddings
