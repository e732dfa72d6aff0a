"""LLaVA's MLP, patch by patch."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, linear_flops, linear_layers

VARIANTS: list[dict[str, Any]] = [{}, {"depth": 1}]
PARAMETERS = [({}, 20_979_712)]
OTHER_MODULES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    return [
        linear_layers(projector.project, batch.patches[image, n])
        for n in range(HEIGHT * WIDTH)
        if batch.patch_mask[image, n]
    ]


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    return linear_flops(projector.project, projector.dims.num_patches)


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    c, d = projector.dims.vision, projector.dims.language
    first = {"0.weight": (d, c), "0.bias": (d,)}
    return first if projector.config.depth == 1 else {**first, "2.weight": (d, d), "2.bias": (d,)}


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    out = F.linear(batch.patches, state["0.weight"], state["0.bias"])
    return out if "2.weight" not in state else F.linear(F.gelu(out), state["2.weight"], state["2.bias"])
