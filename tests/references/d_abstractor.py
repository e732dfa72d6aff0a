"""The D-Abstractor, query by query, head by head and location by location."""

from collections.abc import Mapping
from math import floor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, attend, layer_norm

HEADS_OF_WIDTH = {24: 3, 16: 2}
"""Heads by width; the official forward infers their number from the weights."""
VARIANTS: list[dict[str, Any]] = [
    {"width": 24, "heads": HEADS_OF_WIDTH[24], "tokens": 9, "depth": 1, "points": 2},
    {"width": 16, "heads": HEADS_OF_WIDTH[16], "tokens": 16, "depth": 2, "points": 3},
]
PARAMETERS = [({}, 55_944_032)]
WITHOUT_GRADIENT = ("self_attn.k_proj.bias",)
OTHER_MODULES = (
    "language_model.lm_head.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "vision_model.vision_model.embeddings.class_embedding",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    patches = {
        (n // WIDTH, n % WIDTH): _enter(projector, batch.patches[image, n]) + projector.positions[0, n]
        for n in range(HEIGHT * WIDTH)
        if batch.patch_mask[image, n]
    }
    side = round(projector.config.tokens**0.5)
    means, states, locations = [], [], []
    for index in range(side**2):
        i, j = divmod(index, side)
        rows = range(i * HEIGHT // side, -(-(i + 1) * HEIGHT // side))
        columns = range(j * WIDTH // side, -(-(j + 1) * WIDTH // side))
        inside = [patches[y, x] for y in rows for x in columns if (y, x) in patches]
        if inside:
            means.append(torch.stack(inside).mean(0))
            states.append(projector.queries[index])
            locations.append(projector.reference_points[0, index])
    for layer in projector.layers:
        states = _layer(layer, states, means, locations, patches, projector.config)
    return [projector.project.weight @ state + projector.project.bias for state in states]


def _enter(projector: Any, patch: Tensor) -> Tensor:
    if projector.config.width == len(patch):
        return patch
    return projector.enter.weight @ patch + projector.enter.bias


def _layer(
    layer: Any,
    states: list[Tensor],
    means: list[Tensor],
    locations: list[Tensor],
    patches: dict[Any, Tensor],
    config: Any,
) -> list[Tensor]:
    own, other = layer.self_attn, layer.encoder_attn
    asking = [state + mean for state, mean in zip(states, means, strict=True)]
    keys = torch.stack([_linear(own.k_proj, value) for value in asking])
    values = torch.stack([_linear(own.v_proj, state) for state in states])
    offered = {at: _linear(other.value_proj, patch) for at, patch in patches.items()}
    out = []
    for state, query, mean, location in zip(states, asking, means, locations, strict=True):
        mixed = _linear(own.o_proj, attend(_linear(own.q_proj, query), keys, values, config.heads))
        attended = layer_norm(layer.self_attn_layer_norm, state + mixed)
        offsets = _linear(other.sampling_offsets, attended + mean).unflatten(0, (config.heads, config.points, 2))
        weights = _linear(other.attention_weights, attended + mean).unflatten(0, (config.heads, -1)).softmax(-1)
        mixed = torch.cat(
            [
                _gathered(_part(offered, head, config.heads), location, *of_head)
                for head, of_head in enumerate(zip(offsets, weights, strict=True))
            ]
        )
        attended = layer_norm(layer.encoder_attn_layer_norm, attended + _linear(other.output_proj, mixed))
        hidden = _linear(layer.mlp.fc2, F.relu(_linear(layer.mlp.fc1, attended)))
        out.append(layer_norm(layer.final_layer_norm, attended + hidden))
    return out


def _part(offered: dict[Any, Tensor], head: int, heads: int) -> dict[Any, Tensor]:
    return {at: value.chunk(heads)[head] for at, value in offered.items()}


def _gathered(offered: dict[Any, Tensor], location: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Output of one head: bilinear samples of the patches at each point, zero outside the grid."""
    total = torch.zeros_like(next(iter(offered.values())))
    for offset, weight in zip(offsets, weights, strict=True):
        x, y = float(location[0] * WIDTH + offset[0] - 0.5), float(location[1] * HEIGHT + offset[1] - 0.5)
        for row in (floor(y), floor(y) + 1):
            for column in (floor(x), floor(x) + 1):
                if (row, column) in offered:
                    total = total + weight * (1 - abs(x - column)) * (1 - abs(y - row)) * offered[row, column]
    return total


def _linear(layer: Any, value: Tensor) -> Tensor:
    return layer.weight @ value + layer.bias


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    config, n, c = projector.config, projector.dims.num_patches, projector.dims.vision
    t, e, points = config.tokens, config.width, config.heads * config.points
    # Queries, keys, values, output, two linear layers; scores and weighted sums; offsets and weights; values.
    layer = 2 * t * e**2 * (4 + 1 + 2) + 4 * t**2 * e + 2 * t * e * 3 * points + 2 * n * e**2
    entering = 0 if e == c else 2 * n * c * e
    return entering + config.depth * layer + 2 * t * e * projector.dims.language


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    config, c, d, n = projector.config, projector.dims.vision, projector.dims.language, projector.dims.num_patches
    e, points = config.width, config.heads * config.points
    shapes: dict[str, tuple[int, ...]] = {
        "query_position_embeddings.weight": (config.tokens, e),
        "reference_points": (1, config.tokens, 2),
        "v_pos_emb": (1, n, e),
    }
    linear = {"output_proj": (d, e)} | ({} if e == c else {"input_proj.0": (e, c)})
    for layer in range(config.depth):
        name = f"layers.{layer}."
        linear |= {f"{name}self_attn.{part}_proj": (e, e) for part in ("q", "k", "v", "out")}
        linear |= {f"{name}encoder_attn.{part}_proj": (e, e) for part in ("value", "output")}
        linear |= {f"{name}encoder_attn.sampling_offsets": (2 * points, e)}
        linear |= {f"{name}encoder_attn.attention_weights": (points, e)}
        linear |= {f"{name}fc1": (e, e), f"{name}fc2": (e, e)}
        for norm in ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{name}{norm}.{of}": (e,) for of in ("weight", "bias")}
    for layer_name, shape in linear.items():
        shapes |= {f"{layer_name}.weight": shape, f"{layer_name}.bias": shape[:1]}
    return shapes


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    patches = linear("input_proj.0", batch.patches) if "input_proj.0.weight" in state else batch.patches
    patches = patches + state["v_pos_emb"]
    queries = state["query_position_embeddings.weight"]
    side, heads = round(len(queries) ** 0.5), HEADS_OF_WIDTH[queries.shape[1]]
    pooled = F.adaptive_avg_pool2d(patches.mT.unflatten(-1, (HEIGHT, WIDTH)), side).flatten(2).mT
    states, layer = queries.expand(len(patches), -1, -1), 0
    while f"layers.{layer}.fc1.weight" in state:
        name = f"layers.{layer}."
        query, key, value = (
            linear(f"{name}self_attn.{part}_proj", entering).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, entering in (("q", states + pooled), ("k", states + pooled), ("v", states))
        )
        mixed = ((query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value).transpose(1, 2).flatten(2)
        states = norm(f"{name}self_attn_layer_norm", states + linear(f"{name}self_attn.out_proj", mixed))
        cross = f"{name}encoder_attn."
        offsets = linear(f"{cross}sampling_offsets", states + pooled).unflatten(-1, (heads, -1, 2)).transpose(1, 2)
        weights = linear(f"{cross}attention_weights", states + pooled).unflatten(-1, (heads, -1)).softmax(-1)
        locations = state["reference_points"][:, None, :, None] + offsets / offsets.new_tensor([WIDTH, HEIGHT])
        maps = linear(f"{cross}value_proj", patches).unflatten(1, (HEIGHT, WIDTH)).unflatten(-1, (heads, -1))
        maps = maps.permute(0, 3, 4, 1, 2).flatten(0, 1)
        sampled = F.grid_sample(maps, 2 * locations.flatten(0, 1) - 1, align_corners=False)
        sampled = (sampled.unflatten(0, (-1, heads)) * weights.transpose(1, 2)[:, :, None]).sum(-1)
        mixed = sampled.permute(0, 3, 1, 2).flatten(2)
        states = norm(f"{name}encoder_attn_layer_norm", states + linear(f"{cross}output_proj", mixed))
        hidden = linear(f"{name}fc2", linear(f"{name}fc1", states).relu())
        states = norm(f"{name}final_layer_norm", states + hidden)
        layer += 1
    return linear("output_proj", states)
