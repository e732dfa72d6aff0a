"""SAM's two-way transformer, optimised for few tokens on a large image: upstream's result, computed in another order.

Source: segment-anything 1.0, `TwoWayTransformer.forward`.
Differs from upstream: each prompt has the index of its image, so the first block projects an image once instead of once
per prompt. After the first update every prompt has image features of its own, and these are not projected at all: the
queries are projected to the image's width instead (`q W_k` times the image features), which is cheaper for few tokens.
All heads are computed in one product.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grouping:
    """Assignment of M prompts to B images, so that attention to an image does not copy it per prompt.

    Args:
        image: (M,) index of each prompt's image.
        slot: (M,) index of each prompt among those of its image.
        shape: (B, E), E the largest number of prompts of an image.
    """

    image: Tensor
    slot: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, image: Tensor, num_images: int) -> "Grouping":
        """From each prompt's image index (M,), in any order."""
        membership = F.one_hot(image, num_images)
        slot = (membership.cumsum(0) - 1).gather(1, image.unsqueeze(1)).squeeze(1)
        return cls(image, slot, (num_images, int(membership.sum(0).max())))

    def by_image(self, values: Tensor) -> Tensor:
        """(M, ...) -> (B, E, ...), zeros where an image has fewer prompts."""
        grouped = values.new_zeros(*self.shape, *values.shape[1:])
        return grouped.index_put((self.image, self.slot), values)

    def by_prompt(self, values: Tensor) -> Tensor:
        """(B, E, ...) -> (M, ...)."""
        return values[self.image, self.slot]


def two_way(
    transformer: TwoWayTransformer,
    keys: Tensor,
    position: Tensor,
    tokens: Tensor,
    group: Grouping,
    *,
    image_update: bool,
    num_outputs: int,
) -> tuple[Tensor, Tensor]:
    """Tokens attend to their image and, with `image_update`, the image attends to them.

    Args:
        keys: (B, N, P) image embedding.
        position: (1, N, P).
        tokens: (M, K, P) output tokens and prompt.
        num_outputs: number of first tokens to return.

    Returns:
        The first tokens (M, num_outputs, P), and the image: updated per prompt (M, N, P), or unchanged (B, N, P).
    """
    queries = tokens
    shared: Grouping | None = group  # None after the first update, which gives every prompt its own image features
    for block in transformer.layers:
        if block.skip_first_layer_pe:
            queries = block.norm1(block.self_attn(q=queries, k=queries, v=queries))
        else:
            with_position = queries + tokens
            queries = block.norm1(queries + block.self_attn(q=with_position, k=with_position, v=queries))
        attended = _token_to_image(block.cross_attn_token_to_image, queries + tokens, keys, position, shared)
        queries = block.norm2(queries + attended)
        queries = block.norm3(queries + block.mlp(queries))
        if image_update:
            attention = block.cross_attn_image_to_token
            keys = block.norm4(_image_to_token(attention, keys, position, queries, queries + tokens, shared))
            shared = None
    queries, tokens = queries[:, :num_outputs], tokens[:, :num_outputs]
    final = _token_to_image(transformer.final_attn_token_to_image, queries + tokens, keys, position, shared)
    return transformer.norm_final_attn(queries + final), keys


def _token_to_image(
    attention: Attention, queries: Tensor, keys: Tensor, position: Tensor, shared: Grouping | None
) -> Tensor:
    """Tokens (M, K, P) attend to their prompt's image, all tokens of an image at once while it is shared."""
    q = attention.q_proj(queries)
    if shared is not None:
        return shared.by_prompt(_token_to_shared_image(attention, shared.by_image(q), keys, position))
    query = _by_head(attention, q) / (q.shape[-1] // attention.num_heads) ** 0.5
    positions = attention.k_proj(position)[0]
    scores = torch.baddbmm(query @ positions.mT, query @ attention.k_proj.weight, keys.mT)
    pooled = rearrange(scores.softmax(-1) @ keys, "m (heads k) p -> m heads k p", heads=attention.num_heads)
    weight = rearrange(attention.v_proj.weight, "(heads d) p -> heads d p", heads=attention.num_heads)
    mixed = rearrange(einsum(pooled, weight, "m heads k p, heads d p -> m k heads d"), "m k heads d -> m k (heads d)")
    return attention.out_proj(mixed + attention.v_proj.bias)


def _token_to_shared_image(attention: Attention, q: Tensor, keys: Tensor, position: Tensor) -> Tensor:
    """Projected tokens (B, E, K, d) of an image's prompts attend to it (B, N, P) -> (B, E, K, P)."""
    k, v = attention.k_proj(keys + position), attention.v_proj(keys)
    grouped = rearrange(q, "b e k d -> b (e k) d")
    grouped, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=attention.num_heads) for x in (grouped, k, v))
    mixed = rearrange(F.scaled_dot_product_attention(grouped, k, v), "b heads n d -> b n (heads d)")
    return rearrange(attention.out_proj(mixed), "b (e k) p -> b e k p", k=q.shape[2])


def _image_to_token(
    attention: Attention, keys: Tensor, position: Tensor, values: Tensor, tokens: Tensor, shared: Grouping | None
) -> Tensor:
    """The image (B, N, P) or (M, N, P) attends to each prompt's tokens (M, K, P): updated (M, N, P)."""
    heads = attention.num_heads
    k, v = attention.k_proj(tokens), attention.v_proj(values)
    scaled_k = _by_head(attention, k) / (k.shape[-1] // heads) ** 0.5
    if shared is not None:
        q = attention.q_proj(keys + position)
        grouped = rearrange(shared.by_image(scaled_k), "b e k d -> b (e k) d")
        scores = shared.by_prompt(rearrange(grouped @ q.mT, "b (e k) n -> b e k n", e=shared.shape[1]))
        # A single image is expanded without copies.
        keys = keys.expand(len(tokens), -1, -1) if len(keys) == 1 else keys.index_select(0, shared.image)
    else:
        positions = attention.q_proj(position)[0]
        scores = torch.baddbmm(scaled_k @ positions.mT, scaled_k @ attention.q_proj.weight, keys.mT)
    attended = rearrange(scores, "m (heads k) n -> m heads k n", heads=heads).softmax(dim=2)
    weight = rearrange(attention.out_proj.weight, "p (heads d) -> heads d p", heads=heads)
    update = einsum(rearrange(v, "m k (heads d) -> m heads k d", heads=heads), weight, "m h k d, h d p -> m h k p")
    # Attention weights sum to 1 per head, so 1 / heads of the bias added to every token adds up to the bias.
    update = rearrange(update + attention.out_proj.bias / heads, "m heads k p -> m (heads k) p")
    return torch.baddbmm(keys, rearrange(attended, "m heads k n -> m (heads k) n").mT, update)


def _by_head(attention: Attention, tokens: Tensor) -> Tensor:
    """(M, K, heads d) -> (M, heads K, heads d): each head's slice of a token, zero elsewhere."""
    heads = attention.num_heads
    own = torch.eye(heads, dtype=tokens.dtype, device=tokens.device)
    parts = einsum(rearrange(tokens, "m k (heads d) -> m heads k d", heads=heads), own, "m h k d, h j -> m h k j d")
    return rearrange(parts, "m heads k j d -> m (heads k) (j d)")
