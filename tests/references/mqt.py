"""The Matryoshka query transformer, query by query and head by head; in training with a fixed number of tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, attend, layer_norm, linear_layers, resized_sincos, sincos

HEADS, TOKENS = 3, 5
"""In every variant, because the weights do not determine them."""
CONTENT_QUERIES = 16
"""Only of the variant with content keys, because the weights do not determine the kind of keys."""
_SETTINGS = {"heads": HEADS, "tokens": TOKENS, "train_tokens": "fixed"}
VARIANTS: list[dict[str, Any]] = [
    {**_SETTINGS, "max_queries": 9},
    {**_SETTINGS, "max_queries": 64},
    {**_SETTINGS, "max_queries": CONTENT_QUERIES, "keys": "content"},
]
PARAMETERS = [({}, 8_660_992), ({"keys": "content"}, 8_660_992)]
OTHER_MODULES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    width, queries = projector.dims.vision, projector.config.max_queries
    query_weight, key_weight, value_weight = projector.attention.in_proj_weight.split(width)
    query_bias, key_bias, value_bias = projector.attention.in_proj_bias.split(width)
    side = round(queries**0.5)
    keys, values = [], []
    for n in range(HEIGHT * WIDTH):
        if not batch.patch_mask[image, n]:
            continue
        location = resized_sincos(n, side, width)
        if projector.config.keys == "content":
            location = location + batch.patches[image, n]
        keys.append(key_weight @ _half_norm(projector.norms, location, 0) + key_bias)
        values.append(value_weight @ _half_norm(projector.norms, batch.patches[image, n], 1) + value_bias)
    tokens = []
    for index in range(projector.config.tokens):
        location = sincos(*divmod(index, side), width)
        projected_query = (
            query_weight @ layer_norm(projector.query_norm, projector.queries[index] + location) + query_bias
        )
        attended = attend(projected_query, torch.stack(keys), torch.stack(values), projector.config.heads)
        tokens.append(projector.project.T @ linear_layers(projector.attention.out_proj, attended))
    return tokens


def _half_norm(norms: Any, value: Tensor, half: int) -> Tensor:
    normalised = (value - value.mean()) / (value.var(correction=0) + 1e-6) ** 0.5
    return normalised * norms.weight.chunk(2)[half] + norms.bias.chunk(2)[half]


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    t, n, c = projector.config.tokens, projector.dims.num_patches, projector.dims.vision
    # Query and output projections by token, keys and values by patch; scores and weighted sums; the projection.
    return 2 * c**2 * (2 * t + 2 * n) + 4 * t * n * c + 2 * t * c * projector.dims.language


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    c, queries = projector.dims.vision, projector.config.max_queries
    norms: dict[str, tuple[int, ...]] = {f"ln_{part}.{name}": (c,) for part in "qkv" for name in ("weight", "bias")}
    return {
        **norms,
        "query": (queries, c),
        "pos_embed": (queries, c),
        "attn.in_proj_weight": (3 * c, c),
        "attn.in_proj_bias": (3 * c,),
        "attn.out_proj.weight": (c, c),
        "attn.out_proj.bias": (c,),
        "proj": (c, projector.dims.language),
    }


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    positions = state["pos_embed"]
    side = round(len(positions) ** 0.5)
    maps = positions.T.unflatten(-1, (side, side))[None]
    locations = F.interpolate(maps, (HEIGHT, WIDTH), mode="bicubic").flatten(2).mT.expand(len(batch.patches), -1, -1)
    if len(positions) == CONTENT_QUERIES:
        locations = locations + batch.patches
    projected_query = (state["query"] + positions)[:TOKENS].expand(len(batch.patches), -1, -1)
    query, key, value = (
        F.linear(
            F.layer_norm(states, states.shape[-1:], state[f"ln_{part}.weight"], state[f"ln_{part}.bias"], 1e-6), w, b
        )
        .unflatten(-1, (HEADS, -1))
        .transpose(1, 2)
        for part, states, w, b in zip(
            "qkv",
            (projected_query, locations, batch.patches),
            state["attn.in_proj_weight"].chunk(3),
            state["attn.in_proj_bias"].chunk(3),
            strict=True,
        )
    )
    attended = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value
    out = F.linear(attended.transpose(1, 2).flatten(2), state["attn.out_proj.weight"], state["attn.out_proj.bias"])
    return out @ state["proj"]
