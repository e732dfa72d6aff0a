"""InternVL's and nanoVLM's folding, block by block."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.projector_cases import DIMS
from tests.references.plain import HEIGHT, WIDTH, layer_norm, linear_flops, linear_layers

VARIANTS: list[dict[str, Any]] = [
    {},
    {"scale": 3},
    {"scale": 1},
    {"head": "linear"},
    {"head": "linear", "scale": 6},
]
PARAMETERS = [({}, 33_570_816), ({"head": "linear", "scale": 4}, 67_108_864)]
OTHER_MODULES = (
    "vision_model.embeddings.class_embedding",
    "language_model.model.layers.0.attention.wqkv.weight",
    "vision_encoder.patch_embedding.conv.weight",
    "decoder.token_embedding.weight",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    side = projector.config.scale
    tokens = []
    for top in range(0, HEIGHT, side):
        for left in range(0, WIDTH, side):
            block = [y * WIDTH + x for y in range(top, top + side) for x in range(left, left + side)]
            if not any(batch.patch_mask[image, n] for n in block):
                continue
            vector = torch.cat([batch.patches[image, n] * batch.patch_mask[image, n] for n in block])
            if projector.config.head == "linear":
                tokens.append(projector.project.weight @ vector)
            else:
                tokens.append(linear_layers(projector.project, layer_norm(projector.project[0], vector)))
    return tokens


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    return linear_flops(projector.project, projector.dims.num_patches // projector.config.scale**2)


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    d, folded = projector.dims.language, projector.dims.vision * projector.config.scale**2
    if projector.config.head == "linear":
        return {"proj.weight": (d, folded)}
    norm = {"mlp1.0.weight": (folded,), "mlp1.0.bias": (folded,)}
    return {**norm, "mlp1.1.weight": (d, folded), "mlp1.1.bias": (d,), "mlp1.3.weight": (d, d), "mlp1.3.bias": (d,)}


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    if "proj.weight" in state:
        side = round((state["proj.weight"].shape[1] / DIMS.vision) ** 0.5)
        cells = batch.patches.view(len(batch.patches), HEIGHT // side, side, WIDTH // side, side, DIMS.vision)
        return cells.transpose(2, 3).flatten(3).flatten(1, 2) @ state["proj.weight"].T
    # InternVL folds one axis at a time, and transposes the grid at the end (v2).
    side = round((len(state["mlp1.0.weight"]) / DIMS.vision) ** 0.5)
    rows = batch.patches.view(len(batch.patches), HEIGHT, WIDTH // side, side * DIMS.vision).transpose(1, 2)
    folded = rows.reshape(len(rows), WIDTH // side, HEIGHT // side, -1).transpose(1, 2).flatten(1, 2)
    normed = F.layer_norm(folded, folded.shape[-1:], state["mlp1.0.weight"], state["mlp1.0.bias"])
    hidden = F.gelu(F.linear(normed, state["mlp1.1.weight"], state["mlp1.1.bias"]))
    return F.linear(hidden, state["mlp1.3.weight"], state["mlp1.3.bias"])
