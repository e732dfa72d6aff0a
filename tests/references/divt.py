"""DiVT, patch by patch, cluster by cluster and head by head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, attend, layer_norm, linear_flops, linear_layers

HEADS, THRESHOLD = 3, 0.1
"""In every variant, because the weights do not determine them. Few pairs of random patches are more similar."""
VARIANTS: list[dict[str, Any]] = [{"heads": HEADS, "threshold": THRESHOLD}]
PARAMETERS = [({}, 31_021_056)]
OTHER_MODULES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    width = projector.dims.vision
    query_weight, key_weight, value_weight = projector.attention.in_proj_weight.split(width)
    query_bias, key_bias, value_bias = projector.attention.in_proj_bias.split(width)
    patches = batch.patches[image]
    tokens = []
    for centre, members in _clusters(projector, batch, image).items():
        keys, values = [], []
        for n in members:
            key = linear_layers(projector.key, patches[n])
            value = linear_layers(projector.value, patches[n] + projector.positions[n])
            keys.append(key_weight @ _half_norm(projector.norms, key, 0) + key_bias)
            values.append(value_weight @ _half_norm(projector.norms, value, 1) + value_bias)
        projected_query = (
            query_weight @ layer_norm(projector.query_norm, projector.query.weight @ patches[centre]) + query_bias
        )
        attended = attend(projected_query, torch.stack(keys), torch.stack(values), projector.config.heads)
        tokens.append(linear_layers(projector.project, linear_layers(projector.attention.out_proj, attended)))
    return tokens


def _clusters(projector: Any, batch: VisualFeatures, image: int) -> dict[int, list[int]]:
    """The patches nearest to each centre, centres in ascending order."""
    patches, threshold = batch.patches[image], projector.config.threshold
    valid = [n for n in range(HEIGHT * WIDTH) if batch.patch_mask[image, n]]
    cosine = {
        (n, m): float(patches[n] @ patches[m] / patches[n].norm() / patches[m].norm()) for n in valid for m in valid
    }
    neighbours = {n: sum(cosine[n, m] > threshold for m in valid) for n in valid}
    free, centres = list(valid), []
    while free:
        centre = max(free, key=lambda n: neighbours[n])
        centres.append(centre)
        free = [n for n in free if cosine[centre, n] <= threshold]
    clusters: dict[int, list[int]] = {centre: [] for centre in sorted(centres)}
    for n in valid:
        clusters[max(clusters, key=lambda centre: cosine[centre, n])].append(n)
    return clusters


def _half_norm(norms: Any, value: Tensor, half: int) -> Tensor:
    normalised = (value - value.mean()) / (value.var(correction=0) + 1e-6) ** 0.5
    return normalised * norms.weight.chunk(2)[half] + norms.bias.chunk(2)[half]


def flops(projector: Any, batch: VisualFeatures) -> int:
    t, n, c = len(_clusters(projector, batch, 0)), projector.dims.num_patches, projector.dims.vision
    # Similarities, then projections of the attention, then scores and weighted sums.
    total = 2 * n**2 * c + 2 * c**2 * (2 * t + 2 * n) + 4 * t * n * c
    total += linear_flops(projector.query, t) + linear_flops(projector.key, n) + linear_flops(projector.value, n)
    return total + linear_flops(projector.project, t)


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    c, d = projector.dims.vision, projector.dims.language
    norms: dict[str, tuple[int, ...]] = {f"ln_{part}_1.{name}": (c,) for part in "qkv" for name in ("weight", "bias")}
    layers = {f"{part}_proj_1.{at}": (c, c) for part in "kv" for at in (0, 2)} | {"mlp.0": (d, c), "mlp.2": (d, d)}
    return {
        **norms,
        **{f"{layer}.weight": shape for layer, shape in layers.items()},
        **{f"{layer}.bias": shape[:1] for layer, shape in layers.items()},
        "q_proj_1.weight": (c, c),
        "positional_embedding": (projector.dims.num_patches, c),
        "clip_attn.in_proj_weight": (3 * c, c),
        "clip_attn.in_proj_bias": (3 * c,),
        "clip_attn.out_proj.weight": (c, c),
        "clip_attn.out_proj.bias": (c,),
    }


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    cosine = F.cosine_similarity(batch.patches[:, :, None], batch.patches[:, None], dim=-1)
    tokens = [_official_image(state, patches, near) for patches, near in zip(batch.patches, cosine, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)


def _official_image(state: Mapping[str, Tensor], patches: Tensor, cosine: Tensor) -> Tensor:
    """Patches (N, C) and their similarities (N, N) of one image -> (T, D)."""
    is_near = cosine > THRESHOLD
    score, chosen = is_near.sum(-1), []
    while (score > 0).any():
        chosen.append(int(score.argmax()))
        score = score.masked_fill(is_near[chosen[-1]], 0)
    centres = torch.tensor(sorted(chosen))
    hidden = cosine[centres].argmax(0) != torch.arange(len(centres))[:, None]
    sources = {
        "q": patches[centres] @ state["q_proj_1.weight"].T,
        "k": _mlp(patches, state, "k_proj_1."),
        "v": _mlp(patches + state["positional_embedding"], state, "v_proj_1."),
    }
    query, key, value = (
        F.linear(
            F.layer_norm(source, source.shape[-1:], state[f"ln_{part}_1.weight"], state[f"ln_{part}_1.bias"], 1e-6),
            w,
            b,
        )
        .unflatten(-1, (HEADS, -1))
        .transpose(0, 1)
        for (part, source), w, b in zip(
            sources.items(),
            state["clip_attn.in_proj_weight"].chunk(3),
            state["clip_attn.in_proj_bias"].chunk(3),
            strict=True,
        )
    )
    scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
    attended = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
    return _mlp(F.linear(attended, state["clip_attn.out_proj.weight"], state["clip_attn.out_proj.bias"]), state, "mlp.")


def _mlp(value: Tensor, state: Mapping[str, Tensor], prefix: str) -> Tensor:
    hidden = F.gelu(F.linear(value, state[f"{prefix}0.weight"], state[f"{prefix}0.bias"]))
    return F.linear(hidden, state[f"{prefix}2.weight"], state[f"{prefix}2.bias"])
