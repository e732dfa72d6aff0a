"""Cambrian's aggregator, window by window and head by head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, attend, layer_norm, linear_flops, linear_layers

HEADS = 4
"""In every variant, because the weights do not determine it."""
VARIANTS: list[dict[str, Any]] = [
    {"tokens": 9, "width": 16, "heads": HEADS},
    {"tokens": 4, "width": 12, "heads": HEADS, "depth": 1},
    {"tokens": 1, "width": 24, "heads": HEADS, "depth": 2},
]
# Sampler and mm_projector as measured; the MLP before it (two linear layers of 1024, a layer norm), the query.
PARAMETERS = [({}, 28_348_416 + 20_979_712 + 2 * (1024**2 + 1024) + 2 * 1024 + 1024)]
# The LLM has the prefix of the projector, and holds aggregators of its own; the adapter file has `image_newline` too.
OTHER_MODULES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.image_newline",
    "model.vision_sampler_layers.0.layers.0.pos_embed_0",
    "model.vision_sampler_layers.0.layers.0.cross_attn.k_proj_0.0.weight",
    "model.vision_tower_aux_list.0.vision_tower.vision_model.embeddings.patch_embedding.weight",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    valid = [n for n in range(HEIGHT * WIDTH) if batch.patch_mask[image, n]]
    encoded = {
        n: layer_norm(projector.encode[3], linear_layers(projector.encode, batch.patches[image, n])) for n in valid
    }
    context = torch.stack(list(encoded.values())).mean(0)
    side = round(projector.config.tokens**0.5)
    tokens = []
    for i in range(side):
        for j in range(side):
            rows = range(i * HEIGHT // side, (i + 1) * HEIGHT // side)
            columns = range(j * WIDTH // side, (j + 1) * WIDTH // side)
            window = [row * WIDTH + column for row in rows for column in columns]
            locations = [(location, encoded[n]) for location, n in enumerate(window) if n in encoded]
            if not locations:
                continue
            query = projector.query[0]
            for layer in projector.layers:
                query = query + _read(layer, query, context, locations)
            tokens.append(linear_layers(projector.project, query))
    return tokens


def _read(layer: Any, query: Tensor, context: Tensor, locations: list[tuple[int, Tensor]]) -> Tensor:
    width = len(query)
    merged = layer.merge.weight[:, :width] @ query + layer.merge.weight[:, width:] @ (layer.context.weight @ context)
    keys, values = [], []
    for location, patch in locations:
        at = patch + layer.position[location]
        normalised = (at - at.mean()) / (at.var(correction=0) + 1e-5) ** 0.5
        keys.append(layer.key.weight @ (layer.norms.weight.chunk(2)[0] * normalised + layer.norms.bias.chunk(2)[0]))
        values.append(layer.value.weight @ (layer.norms.weight.chunk(2)[1] * normalised + layer.norms.bias.chunk(2)[1]))
    projected_query = layer.query.weight @ layer_norm(layer.query_norm, merged)
    mixed = attend(projected_query, torch.stack(keys), torch.stack(values), layer.heads)
    attended = layer_norm(layer.norm, merged + layer.output.weight @ mixed)
    return layer.mlp[2].weight @ F.gelu(layer.mlp[0].weight @ attended)


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    n, t = projector.dims.num_patches, projector.config.tokens
    total = linear_flops(projector.encode, n) + linear_flops(projector.project, t)
    for layer in projector.layers:
        total += linear_flops(layer.context, 1) + linear_flops(layer.merge, t) + linear_flops(layer.mlp, t)
        total += linear_flops(layer.query, t) + linear_flops(layer.output, t)
        total += linear_flops(layer.key, n) + linear_flops(layer.value, n)
        # Each patch has one score and one weighted sum, because it lies in one window.
        total += 4 * n * projector.config.width
    return total


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    c, d, e = projector.dims.vision, projector.dims.language, projector.config.width
    locations = projector.dims.num_patches // projector.config.tokens
    square, norm = {"weight": (e, e)}, {"weight": (e,), "bias": (e,)}
    layer: dict[str, dict[str, tuple[int, ...]]] = {
        "proj_context": square,
        "proj_in": {"weight": (e, 2 * e)},
        "proj_out.linear_1": square,
        "proj_out.linear_2": square,
        "norm": norm,
        "cross_attn.q_proj.0": norm,
        "cross_attn.q_proj.1": square,
        "cross_attn.k_proj_0.0": norm,
        "cross_attn.k_proj_0.1": square,
        "cross_attn.v_proj_0.0": norm,
        "cross_attn.v_proj_0.1": square,
        "cross_attn.o_proj": square,
    }
    modules = {
        "mm_projector_aux_0.0": {"weight": (e, c), "bias": (e,)},
        "mm_projector_aux_0.2": {"weight": (e, e), "bias": (e,)},
        "mm_projector_aux_0.3": norm,
        "mm_projector.0": {"weight": (d, e), "bias": (d,)},
        "mm_projector.2": {"weight": (d, d), "bias": (d,)},
        **{f"{_layer(i)}{name}": shapes for i in range(projector.config.depth) for name, shapes in layer.items()},
    }
    positions = {f"{_layer(i)}pos_embed_0": (locations, e) for i in range(projector.config.depth)}
    named = {f"{module}.{name}": shape for module, shapes in modules.items() for name, shape in shapes.items()}
    return {"vision_query": (1, e), **positions, **named}


def _layer(index: int) -> str:
    return f"vision_sampler_0.layers.{index}."


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    images, locations = len(batch.patches), len(state[f"{_layer(0)}pos_embed_0"])
    y = x = round(locations**0.5)
    encoded = _norm(_mlp(batch.patches, state, "mm_projector_aux_0."), state, "mm_projector_aux_0.3.")
    maps = encoded.view(images, HEIGHT // y, y, WIDTH // x, x, -1)
    windows = maps.permute(0, 1, 3, 2, 4, 5).reshape(images, -1, locations, encoded.shape[-1])
    queries = state["vision_query"].expand(images, windows.shape[1], -1)
    depth = sum(name.endswith("pos_embed_0") for name in state)
    for index in range(depth):
        queries = queries + _official_layer(state, _layer(index), queries, encoded.mean(1), windows)
    return _mlp(queries, state, "mm_projector.")


def _official_layer(
    state: Mapping[str, Tensor], prefix: str, queries: Tensor, context: Tensor, windows: Tensor
) -> Tensor:
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    expanded = (context @ own["proj_context.weight"].T)[:, None].expand_as(queries)
    merged = torch.cat([queries, expanded], -1) @ own["proj_in.weight"].T
    located = windows + own["pos_embed_0"]
    query, key, value = (
        (_norm(states, own, f"cross_attn.{name}.0.") @ own[f"cross_attn.{name}.1.weight"].T).unflatten(-1, (HEADS, -1))
        for states, name in ((merged, "q_proj"), (located, "k_proj_0"), (located, "v_proj_0"))
    )
    scores = (query[:, :, None] * key).sum(-1) / query.shape[-1] ** 0.5
    mixed = (scores.softmax(2)[..., None] * value).sum(2).flatten(2)
    attended = _norm(merged + mixed @ own["cross_attn.o_proj.weight"].T, own, "norm.")
    return F.gelu(attended @ own["proj_out.linear_1.weight"].T) @ own["proj_out.linear_2.weight"].T


def _norm(value: Tensor, state: Mapping[str, Tensor], prefix: str) -> Tensor:
    return F.layer_norm(value, value.shape[-1:], state[f"{prefix}weight"], state[f"{prefix}bias"])


def _mlp(value: Tensor, state: Mapping[str, Tensor], prefix: str) -> Tensor:
    hidden = F.gelu(F.linear(value, state[f"{prefix}0.weight"], state[f"{prefix}0.bias"]))
    return F.linear(hidden, state[f"{prefix}2.weight"], state[f"{prefix}2.bias"])
