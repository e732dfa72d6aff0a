"""Qwen-VL's resampler, query by query and head by head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, attend, layer_norm, resized_sincos, sincos

HEADS = 4
"""In every variant, because the weights do not determine them."""
VARIANTS: list[dict[str, Any]] = [{"tokens": 9, "heads": HEADS}, {"tokens": 64, "heads": HEADS}]
# 72.4 million of them before the last norm and projection.
PARAMETERS = [({}, 89_169_920)]
# The vision encoder has the prefix of the resampler.
OTHER_MODULES = (
    "transformer.wte.weight",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.ln_f.weight",
    "lm_head.weight",
    "transformer.visual.positional_embedding",
    "transformer.visual.conv1.weight",
    "transformer.visual.ln_pre.weight",
    "transformer.visual.transformer.resblocks.0.ln_1.weight",
    "transformer.visual.transformer.resblocks.0.attn.in_proj.weight",
    "transformer.visual.transformer.resblocks.0.mlp.c_proj.bias",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    width, side = projector.dims.language, round(projector.config.tokens**0.5)
    query_weight, key_weight, value_weight = projector.attention.in_proj_weight.split(width)
    query_bias, key_bias, value_bias = projector.attention.in_proj_bias.split(width)
    keys, values = [], []
    for n in range(HEIGHT * WIDTH):
        if not batch.patch_mask[image, n]:
            continue
        patch = layer_norm(projector.patch_norm, projector.enter.weight @ batch.patches[image, n])
        keys.append(key_weight @ (patch + resized_sincos(n, side, width)) + key_bias)
        values.append(value_weight @ patch + value_bias)
    tokens = []
    for index, query in enumerate(projector.queries):
        projected_query = layer_norm(projector.query_norm, query) + sincos(*divmod(index, side), width)
        attended = attend(query_weight @ projected_query + query_bias, torch.stack(keys), torch.stack(values), HEADS)
        out = projector.attention.out_proj.weight @ attended + projector.attention.out_proj.bias
        tokens.append(projector.project.T @ layer_norm(projector.norm, out))
    return tokens


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    t, n, c, d = projector.config.tokens, projector.dims.num_patches, projector.dims.vision, projector.dims.language
    # Patches to the LLM's width, keys and values; queries, outputs and the projection; scores and weighted sums.
    return 2 * n * c * d + 2 * n * d**2 * 2 + 2 * t * d**2 * 3 + 4 * t * n * d


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    c, d, t = projector.dims.vision, projector.dims.language, projector.config.tokens
    norms: dict[str, tuple[int, ...]] = {
        f"{norm}.{of}": (d,) for norm in ("attn_pool.ln_q", "attn_pool.ln_kv", "ln_post") for of in ("weight", "bias")
    }
    return {
        **norms,
        "attn_pool.query": (t, d),
        "attn_pool.pos_embed": (t, d),
        "attn_pool.kv_proj.weight": (d, c),
        "attn_pool.attn.in_proj_weight": (3 * d, d),
        "attn_pool.attn.in_proj_bias": (3 * d,),
        "attn_pool.attn.out_proj.weight": (d, d),
        "attn_pool.attn.out_proj.bias": (d,),
        "proj": (d, d),
    }


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    positions = state["attn_pool.pos_embed"]
    side = round(len(positions) ** 0.5)
    maps = positions.T.unflatten(-1, (side, side))[None]
    locations = F.interpolate(maps, (HEIGHT, WIDTH), mode="bicubic").flatten(2).mT
    patches = norm("attn_pool.ln_kv", batch.patches @ state["attn_pool.kv_proj.weight"].T)
    queries = (norm("attn_pool.ln_q", state["attn_pool.query"]) + positions).expand(len(patches), -1, -1)
    weights, biases = state["attn_pool.attn.in_proj_weight"].chunk(3), state["attn_pool.attn.in_proj_bias"].chunk(3)
    query, key, value = (
        F.linear(states, weight, bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for states, weight, bias in zip((queries, patches + locations, patches), weights, biases, strict=True)
    )
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    out = F.linear(attended, state["attn_pool.attn.out_proj.weight"], state["attn_pool.attn.out_proj.bias"])
    return norm("ln_post", out) @ state["proj"]
