"""The Q-Former, query by query and head by head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, attend, layer_norm, linear_flops

HEADS_OF_WIDTH = {12: 3, 16: 2}
"""Heads by width; the official forward infers their number from the weights."""
VARIANTS: list[dict[str, Any]] = [
    {"tokens": 5, "depth": 3, "reads_every": 2, "width": 12, "heads": HEADS_OF_WIDTH[12]},
    {"tokens": 2, "depth": 2, "reads_every": 1, "width": 16, "heads": HEADS_OF_WIDTH[16]},
]
PARAMETERS = [({}, 104_773_120)]
WITHOUT_GRADIENT = ("attention.attention.key.bias",)
OTHER_MODULES = (
    "ln_vision.weight",
    "visual_encoder.cls_token",
    "visual_encoder.blocks.0.attn.q_bias",
    "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.bias",
    "llm_model.model.layers.0.self_attn.q_proj.weight",
    "opt_model.model.decoder.embed_tokens.weight",
    "t5_model.shared.weight",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    patches = [batch.patches[image, n] for n in range(HEIGHT * WIDTH) if batch.patch_mask[image, n]]
    states = [layer_norm(projector.core.layernorm, query) for query in projector.queries[0]]
    for index, layer in enumerate(projector.core.encoder.layer):
        states = _read(layer.attention, states, states, projector.config.heads)
        if index % projector.config.reads_every == 0:
            states = _read(layer.crossattention, states, patches, projector.config.heads)
        hidden = [F.gelu(_linear(layer.intermediate_query.dense, state)) for state in states]
        added = [_linear(layer.output_query.dense, value) for value in hidden]
        states = [
            layer_norm(layer.output_query.LayerNorm, more + state) for more, state in zip(added, states, strict=True)
        ]
    return [_linear(projector.project, state) for state in states]


def _read(block: Any, states: list[Tensor], sources: list[Tensor], heads: int) -> list[Tensor]:
    keys = torch.stack([_linear(block.attention.key, source) for source in sources])
    values = torch.stack([_linear(block.attention.value, source) for source in sources])
    attended = [attend(_linear(block.attention.query, state), keys, values, heads) for state in states]
    return [
        layer_norm(block.output.LayerNorm, _linear(block.output.dense, value) + state)
        for value, state in zip(attended, states, strict=True)
    ]


def _linear(layer: Any, value: Tensor) -> Tensor:
    return layer.weight @ value + layer.bias


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    config, n, c = projector.config, projector.dims.num_patches, projector.dims.vision
    t, e, reading = config.tokens, config.width, len(range(0, config.depth, config.reads_every))
    # Queries, keys, values and output, then two linear layers of four times the width; scores and weighted sums.
    own = 2 * t * e**2 * (4 + 8) + 4 * t**2 * e
    other = 2 * t * e**2 * 2 + 2 * n * c * e * 2 + 4 * t * n * e
    return config.depth * own + reading * other + linear_flops(projector.project, t)


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    config, c, e = projector.config, projector.dims.vision, projector.config.width
    shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, config.tokens, e)}
    linear: dict[str, tuple[int, int]] = {"llm_proj": (projector.dims.language, e)}
    norms = ["Qformer.bert.embeddings.LayerNorm"]
    for layer in range(config.depth):
        name = f"Qformer.bert.encoder.layer.{layer}."
        sources = {"attention": e} | ({"crossattention": c} if layer % config.reads_every == 0 else {})
        for part, width in sources.items():
            linear |= {f"{name}{part}.self.query": (e, e), f"{name}{part}.output.dense": (e, e)}
            linear |= {f"{name}{part}.self.{of}": (e, width) for of in ("key", "value")}
            norms.append(f"{name}{part}.output.LayerNorm")
        linear |= {f"{name}intermediate_query.dense": (4 * e, e), f"{name}output_query.dense": (e, 4 * e)}
        norms.append(f"{name}output_query.LayerNorm")
        # Weights for text, which are not used.
        linear |= {f"{name}intermediate.dense": (4 * e, e), f"{name}output.dense": (e, 4 * e)}
    shapes |= {f"{norm}.{of}": (e,) for norm in norms for of in ("weight", "bias")}
    for layer_name, shape in linear.items():
        shapes |= {f"{layer_name}.weight": shape, f"{layer_name}.bias": shape[:1]}
    return {**shapes, "Qformer.bert.embeddings.position_ids": (1, 512)}


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    heads = HEADS_OF_WIDTH[state["query_tokens"].shape[-1]]
    states = norm("Qformer.bert.embeddings.LayerNorm", state["query_tokens"].expand(len(batch.patches), -1, -1))
    layer = 0
    while f"Qformer.bert.encoder.layer.{layer}.output_query.dense.weight" in state:
        name = f"Qformer.bert.encoder.layer.{layer}."
        for part in ("attention", "crossattention"):
            if f"{name}{part}.output.dense.weight" not in state:
                continue
            sources = states if part == "attention" else batch.patches
            query, key, value = (
                linear(f"{name}{part}.self.{of}", entering).unflatten(-1, (heads, -1)).transpose(1, 2)
                for of, entering in (("query", states), ("key", sources), ("value", sources))
            )
            attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            states = norm(f"{name}{part}.output.LayerNorm", linear(f"{name}{part}.output.dense", attended) + states)
        hidden = F.gelu(linear(f"{name}intermediate_query.dense", states))
        states = norm(f"{name}output_query.LayerNorm", linear(f"{name}output_query.dense", hidden) + states)
        layer += 1
    return linear("llm_proj", states)
