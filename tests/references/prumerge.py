"""PruMerge, patch by patch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, linear_flops, linear_layers

NEAREST = 20
"""In every variant, because the weights do not determine it; one of the images has fewer patches."""
VARIANTS: list[dict[str, Any]] = [{"nearest": NEAREST}]
PARAMETERS = [({}, 20_979_712)]
OTHER_MODULES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    attention, keys = cls_attention(batch, image)
    return merged(projector, batch, image, outliers(attention), attention, keys)


def cls_attention(batch: VisualFeatures, image: int) -> tuple[dict[int, float], dict[int, Tensor]]:
    """Attention of CLS to each valid patch, and the patches' keys, with all heads as one; CLS attends to itself too."""
    assert batch.keys is not None
    assert batch.cls_query is not None
    assert batch.cls_key is not None
    valid = [n for n in range(HEIGHT * WIDTH) if batch.patch_mask[image, n]]
    keys = {n: torch.cat([head[n] for head in batch.keys[image]]) for n in valid}
    query = torch.cat(list(batch.cls_query[image]))
    attended_keys = [*(keys[n] for n in valid), torch.cat(list(batch.cls_key[image]))]
    scores = torch.stack([query @ key / len(query) ** 0.5 for key in attended_keys]).softmax(0)
    return dict(zip(valid, scores.tolist()[:-1], strict=True)), keys


def outliers(attention: dict[int, float]) -> list[int]:
    """Patches above the bound, by attention."""
    low, high = np.percentile(list(attention.values()), [25, 75])
    above = [n for n in attention if attention[n] > high + 1.5 * (high - low)]
    return sorted(above, key=lambda n: -attention[n])


def merged(
    projector: Any,
    batch: VisualFeatures,
    image: int,
    kept: list[int],
    attention: dict[int, float],
    keys: dict[int, Tensor],
) -> list[Tensor]:
    """Each kept patch with its most similar patches, then the patches that were not kept."""
    tokens = []
    for n in kept:
        others = [m for m in keys if m != n]
        others.sort(key=lambda m: -float(keys[n] @ keys[m] / keys[n].norm() / keys[m].norm()))
        token = batch.patches[image, n].clone()
        for m in others[:NEAREST]:
            token += attention[m] * batch.patches[image, m]
        tokens.append(token)
    rest = [attention[m] * batch.patches[image, m] for m in keys if m not in kept]
    tokens.append(torch.stack(rest).sum(0))
    return [linear_layers(projector.project, token) for token in tokens]


def flops(projector: Any, batch: VisualFeatures) -> int:
    return flops_of(projector, len(outliers(cls_attention(batch, 0)[0])) + 1)


def flops_of(projector: Any, tokens: int) -> int:
    """Scores of CLS, similarities of patches, and weighted sums; then the MLP."""
    n, c = projector.dims.num_patches, projector.dims.vision
    return 2 * (n + 1) * c + 2 * n**2 * c + 2 * tokens * n * c + linear_flops(projector.project, tokens)


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    c, d = projector.dims.vision, projector.dims.language
    return {"0.weight": (d, c), "0.bias": (d,), "2.weight": (d, d), "2.bias": (d,)}


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    return official_mlp(state, official_tokens(batch, 0, official_outliers(batch, 0)))[None]


def official_outliers(batch: VisualFeatures, image: int) -> Tensor:
    """Patch indices by attention."""
    attention = official_attention(batch, image)
    quartiles = np.percentile(attention, [25, 75])
    count = int((attention.numpy() > quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])).sum())
    return attention.topk(count).indices


def official_attention(batch: VisualFeatures, image: int) -> Tensor:
    """The first row of the softmax over CLS and patches, without its first column."""
    assert batch.keys is not None
    assert batch.cls_query is not None
    assert batch.cls_key is not None
    query = batch.cls_query[image].flatten()
    keys = torch.cat([batch.cls_key[image].flatten()[None], batch.keys[image].transpose(0, 1).flatten(1)])
    return (keys @ query * len(query) ** -0.5).softmax(0)[1:]


def official_tokens(batch: VisualFeatures, image: int, kept: Tensor) -> Tensor:
    """(T, C)."""
    assert batch.keys is not None
    attention, patches = official_attention(batch, image), batch.patches[image]
    keys = F.normalize(batch.keys[image].transpose(0, 1).flatten(1), dim=-1)
    tokens = []
    for n in kept.tolist():
        cosine = (keys @ keys[n]).index_fill(0, torch.tensor(n), -2)
        near = cosine.topk(NEAREST).indices
        tokens.append(patches[n] + (patches[near] * attention[near, None]).sum(0))
    rest = torch.ones(len(patches), dtype=torch.bool).index_fill(0, kept, value=False)
    return torch.stack([*tokens, (patches[rest] * attention[rest, None]).sum(0)])


def official_mlp(state: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(tokens, state["0.weight"], state["0.bias"]))
    return F.linear(hidden, state["2.weight"], state["2.bias"])
