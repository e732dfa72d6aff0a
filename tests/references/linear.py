"""LLaVA's linear layer, patch by patch."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, linear_flops

VARIANTS: list[dict[str, Any]] = [{}]
PARAMETERS = [({}, 4_198_400)]
OTHER_MODULES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    weight, bias = projector.project.weight, projector.project.bias
    return [weight @ batch.patches[image, n] + bias for n in range(HEIGHT * WIDTH) if batch.patch_mask[image, n]]


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    return linear_flops(projector.project, projector.dims.num_patches)


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    return {"weight": (projector.dims.language, projector.dims.vision), "bias": (projector.dims.language,)}


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    return batch.patches @ state["weight"].T + state["bias"]
