"""The Perceiver resampler, latent by latent and head by head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projectors import VisualFeatures
from tests.references.plain import HEIGHT, WIDTH, attend, layer_norm, linear_flops

HEADS = 2
"""In every variant, because the weights do not determine them."""
VARIANTS: list[dict[str, Any]] = [
    {"tokens": 5, "depth": 2, "heads": HEADS, "head_width": 6},
    {"tokens": 1, "depth": 1, "heads": HEADS, "head_width": 12},
]
# With the 4,198,400 of the linear layer to the LLM.
PARAMETERS = [({}, 63_019_008 + 4_198_400)]
# open_flamingo/train/train_utils.py (`get_checkpoint`): what was trained, and what lies in the LLM under a second name.
OTHER_MODULES = (
    "lang_encoder.transformer.wte.weight",
    "lang_encoder.transformer.blocks.0.gated_cross_attn_layer.attn_gate",
    "lang_encoder.transformer.blocks.0.gated_cross_attn_layer.attn.norm.weight",
    "lang_encoder.gated_cross_attn_layers.0.ff.1.weight",
    "lang_encoder.old_decoder_blocks.0.norm_1.weight",
)


def reference(projector: Any, batch: VisualFeatures, image: int) -> list[Tensor]:
    patches = [batch.patches[image, n] for n in range(HEIGHT * WIDTH) if batch.patch_mask[image, n]]
    latents = list(projector.latents)
    for layer in projector.layers:
        normed = [layer_norm(layer.latent_norm, latent) for latent in latents]
        sources = [layer_norm(layer.patch_norm, patch) for patch in patches] + normed
        key_weight, value_weight = layer.key_value.weight.chunk(2)
        keys, values = (torch.stack([w @ source for source in sources]) for w in (key_weight, value_weight))
        attended = [attend(layer.query.weight @ value, keys, values, projector.config.heads) for value in normed]
        latents = [latent + layer.output.weight @ value for latent, value in zip(latents, attended, strict=True)]
        norm, widen, _, narrow = layer.mlp
        latents = [latent + narrow.weight @ F.gelu(widen.weight @ layer_norm(norm, latent)) for latent in latents]
    return [
        projector.project.weight @ layer_norm(projector.norm, latent) + projector.project.bias for latent in latents
    ]


def flops(projector: Any, batch: VisualFeatures) -> int:  # noqa: ARG001
    config, n, c = projector.config, projector.dims.num_patches, projector.dims.vision
    t, e = config.tokens, config.heads * config.head_width
    # Queries and output by latent, keys and values by patch and latent, the MLP; scores and weighted sums.
    layer = 2 * t * c * e * 2 + 2 * (n + t) * c * 2 * e + 2 * t * c * 4 * c * 2 + 4 * t * (n + t) * e
    return config.depth * layer + linear_flops(projector.project, t)


def official_shapes(projector: Any) -> dict[str, tuple[int, ...]]:
    config, c = projector.config, projector.dims.vision
    e = config.heads * config.head_width
    shapes: dict[str, tuple[int, ...]] = {"latents": (config.tokens, c)}
    norms = ["norm"]
    for layer in range(config.depth):
        name = f"layers.{layer}."
        norms += [f"{name}0.norm_media", f"{name}0.norm_latents", f"{name}1.0"]
        shapes |= {
            f"{name}0.to_q.weight": (e, c),
            f"{name}0.to_kv.weight": (2 * e, c),
            f"{name}0.to_out.weight": (c, e),
        }
        shapes |= {f"{name}1.1.weight": (4 * c, c), f"{name}1.3.weight": (c, 4 * c)}
    return shapes | {f"{norm}.{of}": (c,) for norm in norms for of in ("weight", "bias")}


def unpublished(projector: Any) -> dict[str, Tensor]:
    """The linear layer to the LLM's width, which the release lacks."""
    return {f"project.{name}": value for name, value in projector.project.state_dict().items()}


def official_forward(state: Mapping[str, Tensor], batch: VisualFeatures) -> Tensor:
    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    latents, layer = state["latents"].expand(len(batch.patches), -1, -1), 0
    while f"layers.{layer}.0.to_q.weight" in state:
        name = f"layers.{layer}."
        asking = norm(f"{name}0.norm_latents", latents)
        sources = torch.cat([norm(f"{name}0.norm_media", batch.patches), asking], dim=1)
        key, value = (sources @ state[f"{name}0.to_kv.weight"].T).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (asking @ state[f"{name}0.to_q.weight"].T, key, value)
        )
        attended = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value
        latents = latents + attended.transpose(1, 2).flatten(2) @ state[f"{name}0.to_out.weight"].T
        hidden = F.gelu(norm(f"{name}1.0", latents) @ state[f"{name}1.1.weight"].T)
        latents = latents + hidden @ state[f"{name}1.3.weight"].T
        layer += 1
    return F.linear(norm("norm", latents), state["project.weight"], state["project.bias"])
