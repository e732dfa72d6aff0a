"""TokenPacker, region by region and head by head."""

from collections.abc import Mapping
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, attend, layer_norm, linear_flops, linear_layers

HEADS, SCALE = 4, 2
"""In every variant, because the weights do not determine them."""
VARIANTS: list[dict[str, Any]] = [
    {"layers": [1, 3], "width": 16, "heads": HEADS, "scale": SCALE},
    {"layers": [4], "width": 24, "heads": HEADS, "scale": SCALE},
]
PARAMETERS = [({}, 36_722_688), ({"scale": 4}, 36_722_688)]
OTHER_MODULES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    assert batch.layers is not None
    scale, width = projector.config.scale, projector.config.width
    query_weight, key_weight, value_weight = projector.attention.in_proj_weight.split(width)
    query_bias, key_bias, value_bias = projector.attention.in_proj_bias.split(width)
    tokens = []
    for i in range(HEIGHT // scale):
        for j in range(WIDTH // scale):
            inside = [(y, x) for y in range(i * scale, (i + 1) * scale) for x in range(j * scale, (j + 1) * scale)]
            region = [y * WIDTH + x for y, x in inside if batch.patch_mask[image, y * WIDTH + x]]
            if not region:
                continue
            point = layer_norm(projector.query_norm, projector.query.weight @ _point(projector, batch, image, i, j))
            keys, values = [], []
            for n in region:
                concatenated = torch.cat([batch.layers[image, k, n] for k in range(batch.layers.shape[1])])
                key = _half_norm(projector.norms, linear_layers(projector.key, concatenated), 0)
                value = _half_norm(projector.norms, linear_layers(projector.value, concatenated), 1)
                keys.append(key_weight @ key + key_bias)
                values.append(value_weight @ value + value_bias)
            projected_query = query_weight @ point + query_bias
            attended = attend(projected_query, torch.stack(keys), torch.stack(values), projector.config.heads)
            tokens.append(linear_layers(projector.project, linear_layers(projector.attention.out_proj, attended)))
    return tokens


def _point(projector: Any, batch: VisualFeatures, image: int, i: int, j: int) -> Tensor:
    """Bilinear over the valid ones of the four patches around the centre of region (i, j)."""
    scale = projector.config.scale
    y, x = ((at + 0.5) * scale - 0.5 for at in (i, j))
    total, weights = torch.zeros(projector.dims.vision).double(), 0.0
    for row in {floor(y), ceil(y)}:
        for column in {floor(x), ceil(x)}:
            weight = (1 - abs(row - y)) * (1 - abs(column - x)) * float(batch.patch_mask[image, row * WIDTH + column])
            total, weights = total + weight * batch.patches[image, row * WIDTH + column], weights + weight
    if weights:
        return total / weights
    inside = [(y, x) for y in range(i * scale, (i + 1) * scale) for x in range(j * scale, (j + 1) * scale)]
    valid = [batch.patches[image, y * WIDTH + x] for y, x in inside if batch.patch_mask[image, y * WIDTH + x]]
    return torch.stack(valid).mean(0)


def _half_norm(norms: Any, value: Tensor, half: int) -> Tensor:
    normalised = (value - value.mean()) / (value.var(correction=0) + 1e-6) ** 0.5
    return normalised * norms.weight.chunk(2)[half] + norms.bias.chunk(2)[half]


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    n, width = projector.dims.num_patches, projector.config.width
    t = n // projector.config.scale**2
    layers = linear_flops(projector.key, n) + linear_flops(projector.value, n)
    # Query and output projections by token, keys and values by patch; each patch has one score and one weighted sum.
    attention = 2 * width**2 * (2 * t + 2 * n) + 4 * n * width
    return linear_flops(projector.query, t) + layers + attention + linear_flops(projector.project, t)


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    c, d, e = projector.dims.vision, projector.dims.language, projector.config.width
    deep = len(projector.config.layers) * c
    modules: dict[str, dict[str, tuple[int, ...]]] = {
        **{f"ln_{part}_1": {"weight": (e,), "bias": (e,)} for part in "qkv"},
        **{f"{part}_proj_1.0": {"weight": (e, deep), "bias": (e,)} for part in "kv"},
        **{f"{part}_proj_1.2": {"weight": (e, e), "bias": (e,)} for part in "kv"},
        "q_proj_1": {"weight": (e, c)},
        "clip_attn": {"in_proj_weight": (3 * e, e), "in_proj_bias": (3 * e,)},
        "clip_attn.out_proj": {"weight": (e, e), "bias": (e,)},
        "mlp.0": {"weight": (d, e), "bias": (d,)},
        "mlp.2": {"weight": (d, d), "bias": (d,)},
    }
    return {f"{module}.{name}": shape for module, shapes in modules.items() for name, shape in shapes.items()}


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    assert batch.layers is not None
    images, (rows, columns) = len(batch.patches), (HEIGHT // SCALE, WIDTH // SCALE)
    maps = batch.patches.mT.unflatten(-1, (HEIGHT, WIDTH))
    points = F.interpolate(maps, (rows, columns), mode="bilinear").flatten(2).mT @ state["q_proj_1.weight"].T
    concatenated = batch.layers.transpose(1, 2).flatten(2)
    query, key, value = (
        F.layer_norm(states, states.shape[-1:], state[f"ln_{part}_1.weight"], state[f"ln_{part}_1.bias"], 1e-6)
        for part, states in zip(
            "qkv", (points, *(_mlp(concatenated, state, f"{p}_proj_1.") for p in "kv")), strict=True
        )
    )
    query, key, value = (
        F.linear(states, weight, bias).unflatten(-1, (HEADS, -1))
        for states, weight, bias in zip(
            (query, key, value),
            state["clip_attn.in_proj_weight"].chunk(3),
            state["clip_attn.in_proj_bias"].chunk(3),
            strict=True,
        )
    )
    # (images, rows, SCALE, columns, SCALE, heads, width): the two inner axes of a region are summed over.
    key, value = (
        states.view(images, rows, SCALE, columns, SCALE, *states.shape[-2:]).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        for states in (key, value)
    )
    scores = (query[:, :, None] * key).sum(-1) / query.shape[-1] ** 0.5
    attended = (scores.softmax(2)[..., None] * value).sum(2).flatten(2)
    return _mlp(F.linear(attended, state["clip_attn.out_proj.weight"], state["clip_attn.out_proj.bias"]), state, "mlp.")


def _mlp(value: Tensor, state: Mapping[str, Tensor], prefix: str) -> Tensor:
    hidden = F.gelu(F.linear(value, state[f"{prefix}0.weight"], state[f"{prefix}0.bias"]))
    return F.linear(hidden, state[f"{prefix}2.weight"], state[f"{prefix}2.bias"])
