"""MobileVLM V2's projector, patch by patch, cell by cell, and neighbour by neighbour."""

from collections.abc import Mapping
from math import ceil, floor
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, linear_flops, linear_layers

_SIDE = 4
# The official forward knows one number of tokens, which its weights do not tell.
VARIANTS: list[dict[str, Any]] = [{"tokens": _SIDE**2}]
PARAMETERS = [({}, 21_020_672)]
OTHER_MODULES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    side = round(projector.config.tokens**0.5)
    cells: dict[tuple[int, int], Tensor] = {}
    for i in range(side):
        for j in range(side):
            rows = range(floor(i * HEIGHT / side), ceil((i + 1) * HEIGHT / side))
            columns = range(floor(j * WIDTH / side), ceil((j + 1) * WIDTH / side))
            inside = [row * WIDTH + column for row in rows for column in columns]
            valid = [batch.patches[image, n] for n in inside if batch.patch_mask[image, n]]
            if valid:
                cells[i, j] = sum(linear_layers(projector.project, patch) for patch in valid) / len(valid)
    kernel, bias = projector.neighbours.weight, projector.neighbours.bias
    return [
        token
        + bias
        + sum(
            kernel[:, 0, y + 1, x + 1] * cells[i + y, j + x]
            for y in (-1, 0, 1)
            for x in (-1, 0, 1)
            if (i + y, j + x) in cells
        )
        for (i, j), token in cells.items()
    ]


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    convolution = 2 * 9 * projector.dims.language * projector.config.tokens
    return linear_flops(projector.project, projector.dims.num_patches) + convolution


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    c, d = projector.dims.vision, projector.dims.language
    mlp = {"mlp.mlp.0.weight": (d, c), "mlp.mlp.0.bias": (d,), "mlp.mlp.2.weight": (d, d), "mlp.mlp.2.bias": (d,)}
    return {**mlp, "peg.peg.0.weight": (d, 1, 3, 3), "peg.peg.0.bias": (d,)}


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    hidden = F.gelu(F.linear(batch.patches, state["mlp.mlp.0.weight"], state["mlp.mlp.0.bias"]))
    out = F.linear(hidden, state["mlp.mlp.2.weight"], state["mlp.mlp.2.bias"])
    maps = F.adaptive_avg_pool2d(out.mT.unflatten(-1, (HEIGHT, WIDTH)), (_SIDE, _SIDE))
    weight, bias = state["peg.peg.0.weight"], state["peg.peg.0.bias"]
    return (F.conv2d(maps, weight, bias, padding=1, groups=len(weight)) + maps).flatten(2).mT
