"""SAM's two-way transformer for few tokens on a large image: the same sums as upstream, in another order.

Source: segment-anything 1.0, `TwoWayTransformer.forward`.
Differs from upstream: prompts name their image, so that an image is projected once for its first block and not once for
each of its prompts; and where every prompt has come to see an image of its own, the image is never projected at all.
What tokens ask is brought to the image's width instead (`q W_k` against the image itself), which is less work for a
handful of tokens, and heads are laid side by side in one product instead of many thin ones.
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
    """M prompts of B images, each at a slot of its image, so that attention to an image need not copy the image.

    Args:
        image: (M,) which image a prompt belongs to.
        slot: (M,) its number among the prompts of that image.
        shape: (B, slots of the image with the most prompts).
    """

    image: Tensor
    slot: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, image: Tensor, num_images: int) -> "Grouping":
        """From the image of each prompt, in any order."""
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
    num_read: int,
) -> tuple[Tensor, Tensor]:
    """Tokens look at their image and, with `image_update`, the image looks back at them.

    Args:
        keys: (B, N, P) image embedding.
        position: (1, N, P).
        tokens: (M, K, P) output tokens and prompt.
        num_read: how many of the tokens, from the first, are wanted in the end.

    Returns:
        The first tokens (M, num_read, P), and the image: (M, N, P) as each prompt sees it, or (B, N, P) as it was.
    """
    queries = tokens
    shared: Grouping | None = group  # None once every prompt has an image of its own
    for block in transformer.layers:
        if block.skip_first_layer_pe:
            queries = block.norm1(block.self_attn(q=queries, k=queries, v=queries))
        else:
            with_position = queries + tokens
            queries = block.norm1(queries + block.self_attn(q=with_position, k=with_position, v=queries))
        looked = _token_to_image(block.cross_attn_token_to_image, queries + tokens, keys, position, shared)
        queries = block.norm2(queries + looked)
        queries = block.norm3(queries + block.mlp(queries))
        if image_update:
            attention = block.cross_attn_image_to_token
            keys = block.norm4(_image_to_token(attention, keys, position, queries, queries + tokens, shared))
            shared = None
    queries, tokens = queries[:, :num_read], tokens[:, :num_read]
    final = _token_to_image(transformer.final_attn_token_to_image, queries + tokens, keys, position, shared)
    return transformer.norm_final_attn(queries + final), keys


def _token_to_image(
    attention: Attention, queries: Tensor, keys: Tensor, position: Tensor, shared: Grouping | None
) -> Tensor:
    """Tokens (M, K, P) look at the image of their prompt, all tokens of an image at once while it is shared."""
    q = attention.q_proj(queries)
    if shared is not None:
        return shared.by_prompt(_token_to_shared_image(attention, shared.by_image(q), keys, position))
    query = _by_head(attention, q) / (q.shape[-1] // attention.num_heads) ** 0.5
    positions = attention.k_proj(position)[0]
    scores = torch.baddbmm(query @ positions.mT, query @ attention.k_proj.weight, keys.mT)
    seen = rearrange(scores.softmax(-1) @ keys, "m (heads k) p -> m heads k p", heads=attention.num_heads)
    weight = rearrange(attention.v_proj.weight, "(heads d) p -> heads d p", heads=attention.num_heads)
    mixed = rearrange(einsum(seen, weight, "m heads k p, heads d p -> m k heads d"), "m k heads d -> m k (heads d)")
    return attention.out_proj(mixed + attention.v_proj.bias)


def _token_to_shared_image(attention: Attention, q: Tensor, keys: Tensor, position: Tensor) -> Tensor:
    """Projected tokens (B, E, K, d) of an image's prompts look at it (B, N, P) -> (B, E, K, P)."""
    k, v = attention.k_proj(keys + position), attention.v_proj(keys)
    grouped = rearrange(q, "b e k d -> b (e k) d")
    grouped, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=attention.num_heads) for x in (grouped, k, v))
    mixed = rearrange(F.scaled_dot_product_attention(grouped, k, v), "b heads n d -> b n (heads d)")
    return rearrange(attention.out_proj(mixed), "b (e k) p -> b e k p", k=q.shape[2])


def _image_to_token(
    attention: Attention, keys: Tensor, position: Tensor, values: Tensor, tokens: Tensor, shared: Grouping | None
) -> Tensor:
    """The image (B, N, P) or (M, N, P) looks at each prompt's tokens (M, K, P): it and what it sees, (M, N, P)."""
    heads = attention.num_heads
    k, v = attention.k_proj(tokens), attention.v_proj(values)
    offered = _by_head(attention, k) / (k.shape[-1] // heads) ** 0.5
    if shared is not None:
        looking = attention.q_proj(keys + position)
        grouped = rearrange(shared.by_image(offered), "b e k d -> b (e k) d")
        scores = shared.by_prompt(rearrange(grouped @ looking.mT, "b (e k) n -> b e k n", e=shared.shape[1]))
        # The only image there is needs no copies.
        keys = keys.expand(len(tokens), -1, -1) if len(keys) == 1 else keys.index_select(0, shared.image)
    else:
        positions = attention.q_proj(position)[0]
        scores = torch.baddbmm(offered @ positions.mT, offered @ attention.q_proj.weight, keys.mT)
    attended = rearrange(scores, "m (heads k) n -> m heads k n", heads=heads).softmax(dim=2)
    weight = rearrange(attention.out_proj.weight, "p (heads d) -> heads d p", heads=heads)
    update = einsum(rearrange(v, "m k (heads d) -> m heads k d", heads=heads), weight, "m h k d, h d p -> m h k p")
    # What an image cell sees is a mean of each head's tokens, so a share of the bias in every token adds up to it.
    update = rearrange(update + attention.out_proj.bias / heads, "m heads k p -> m (heads k) p")
    return torch.baddbmm(keys, rearrange(attended, "m heads k n -> m (heads k) n").mT, update)


def _by_head(attention: Attention, tokens: Tensor) -> Tensor:
    """(M, K, heads d) -> (M, heads K, heads d): each head's own part of a token, zero elsewhere."""
    heads = attention.num_heads
    own = torch.eye(heads, dtype=tokens.dtype, device=tokens.device)
    parts = einsum(rearrange(tokens, "m k (heads d) -> m heads k d", heads=heads), own, "m h k d, h j -> m h k j d")
    return rearrange(parts, "m heads k j d -> m (heads k) (j d)")
