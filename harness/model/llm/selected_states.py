"""Hidden states of selected tokens of a Llama, for training: transformers' result, computed in another order.

Source: transformers, `modeling_llama.py`.
Differs from transformers: the last layer computes queries and the MLP for the selected tokens only, which are few among
visual tokens and words; projections of the same input are one matrix product; the gains of RMS norms are multiplied
into the weights that follow; norms and rotations store less for the backward pass.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from harness.model.llm.packing import PackedSequence


def selected_states(model: LlamaModel, packed: PackedSequence, is_selected: Tensor) -> Tensor:
    """Last hidden states (M, D) of the tokens in is_selected (B, Q) bool, in row-major order."""
    image, token = is_selected.nonzero(as_tuple=True)
    slots = is_selected.cumsum(1) - 1
    slot, most = slots[image, token], int(slots.max()) + 1
    # (B, K), padded with the image's first token.
    chosen = torch.zeros(len(is_selected), most, dtype=torch.int64, device=image.device)
    chosen[image, slot] = token
    rows = torch.arange(len(chosen), device=chosen.device)[:, None]

    mask = torch.where(packed.attention, 0.0, -torch.inf)
    angles = packed.positions[..., None] * model.rotary_emb.inv_freq.float()
    cos, sin = (rearrange(wave, "b q f -> b q 1 f") for wave in (angles.cos(), angles.sin()))
    states = packed.embeds
    layers: list[Any] = [*model.layers]
    for layer in layers[:-1]:
        states = _run_layer(layer, states, mask, cos, sin)
    states = _run_layer(layers[-1], states, mask[rows, chosen], cos, sin, (rows, chosen))
    return model.norm(states)[image, slot]


def _run_layer(
    layer: LlamaDecoderLayer,
    states: Tensor,
    mask: Tensor,
    cos: Tensor,
    sin: Tensor,
    chosen: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """States (B, Q, D) -> (B, K, D), K = Q or the number of chosen tokens.

    Args:
        mask: (B, K, Q), added to the attention's logits.
        cos, sin: (B, Q, 1, d / 2), by which pairs of components are rotated.
        chosen: index of the queries in the first two axes of the states; None for all.
    """
    attention: Any = layer.self_attn
    normed = _UnitRms.apply(states, layer.input_layernorm.variance_epsilon)
    gain, pattern = layer.input_layernorm.weight, "b q (h d) -> b q h d"
    value = rearrange(_project(normed, gain, attention.v_proj), pattern, d=attention.head_dim)
    if chosen is None:
        both = rearrange(_project(normed, gain, attention.q_proj, attention.k_proj), pattern, d=attention.head_dim)
        query, key = _Rotation.apply(both, cos, sin).chunk(2, dim=2)
    else:
        key = rearrange(_project(normed, gain, attention.k_proj), pattern, d=attention.head_dim)
        query = rearrange(_project(normed[chosen], gain, attention.q_proj), pattern, d=attention.head_dim)
        key, query = _Rotation.apply(key, cos, sin), _Rotation.apply(query, cos[chosen], sin[chosen])
        states = states[chosen]
    query, key, value = (rearrange(part, "b q h d -> b h q d") for part in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, mask.unsqueeze(1), scale=attention.scaling)
    states = states + attention.o_proj(rearrange(attended, "b h q d -> b q (h d)"))
    normed = _UnitRms.apply(states, layer.post_attention_layernorm.variance_epsilon)
    gain, mlp = layer.post_attention_layernorm.weight, layer.mlp
    gate, up = _project(normed, gain, mlp.gate_proj, mlp.up_proj).chunk(2, dim=-1)
    return states + mlp.down_proj(F.silu(gate) * up)


def _project(normed: Tensor, gain: Tensor, *linears: nn.Linear) -> Tensor:
    """Outputs of linear layers on `normed * gain`, concatenated."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    weight = torch.cat(weights) * gain
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return F.linear(normed, weight, torch.cat(biases) if biases else None)


class _UnitRms(torch.autograd.Function):
    """Divides vectors by their root mean square, computed in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, epsilon: float) -> Tensor:
        """(..., D) -> (..., D)."""
        inverse = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = inverse.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
        normed = (states * inverse).to(states.dtype)
        ctx.save_for_backward(normed, inverse)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The part of the gradient along the vector is removed, and the rest is scaled."""
        normed, inverse = ctx.saved_tensors
        along = (gradient * normed).mean(dim=-1, keepdim=True, dtype=torch.float32)
        return (gradient - normed * along).mul_(inverse).to(normed.dtype), None


class _Rotation(torch.autograd.Function):
    """Rotary position embedding: component i of a head is paired with component i + d / 2."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Heads (B, Q, h, d), cos and sin (B, Q, 1, d / 2) -> (B, Q, h, d)."""
        cos, sin = cos.to(heads.dtype), sin.to(heads.dtype)
        ctx.save_for_backward(cos, sin)
        return _rotate(heads, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The rotation by the opposite angle."""
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, -sin), None, None


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    rotated = torch.empty_like(heads, memory_format=torch.contiguous_format)
    one, other = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=one).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=other).addcmul_(first, sin)
    return rotated
