"""SAM's two-way transformer, optimised for few tokens on a large image: upstream's result, computed in another order.

Source: segment-anything 1.0, `TwoWayTransformer.forward`.
Differs from upstream: each prompt has the index of its image, so the first block projects an image once instead of once
per prompt. After the first update every prompt has image features of its own. These are not projected at all: the
queries are projected to the image's width instead (`q W_k` times the image features), which is cheaper for few tokens.
All heads are computed in one product. Prompts are processed in groups, and their image features in smaller groups: on
a CPU, tokens of many prompts at once cost fewer calls, and the image of one prompt at once stays in a core's cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
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


@dataclass(frozen=True, slots=True)
class Decoded:
    """The transformer's output for some of the prompts.

    Args:
        prompts: which of the M prompts, K of them.
        states: (K, num_outputs, P) output tokens.
        images: the image as updated by each prompt, (m, N, P) each, in their order; or one (B, N, P) if prompts do not
            update images.
    """

    prompts: slice
    states: Tensor
    images: list[Tensor]


@dataclass(frozen=True, slots=True)
class GroupSizes:
    """Numbers of prompts that are processed at once.

    Args:
        tokens: in the layers on tokens.
        images: in the layers on image features; at most `tokens`.
    """

    tokens: int
    images: int


def two_way(
    transformer: TwoWayTransformer,
    keys: Tensor,
    position: Tensor,
    tokens: Tensor,
    group: Grouping,
    *,
    image_update: bool,
    outputs: Sequence[int],
    sizes: GroupSizes,
) -> Iterator[Decoded]:
    """Tokens attend to their image and, with `image_update`, the image attends to them.

    Args:
        keys: (B, N, P) image embedding.
        position: (1, N, P).
        tokens: (M, K, P) output tokens and prompt.
        outputs: indices of the tokens whose output is returned.
        sizes: numbers of prompts at once; without `image_update`, all.
    """
    first, *others = transformer.layers
    attend = partial(_token_to_shared_image, keys=keys, position=position, group=group)
    queries = _update_tokens(first, tokens, tokens, attend)
    if not image_update:
        for block in others:
            queries = _update_tokens(block, queries, tokens, attend)
        yield Decoded(slice(0, len(tokens)), _final(transformer, queries, tokens, outputs, attend), [keys])
        return
    for start in range(0, max(1, len(tokens)), sizes.tokens):
        chunk = slice(start, start + sizes.tokens)
        some, own = queries[chunk], tokens[chunk]
        images = [_of_prompts(keys, image) for image in group.image[chunk].split(sizes.images)]
        images = _update_images(first, images, position, some, own)
        for block in others:
            some = _update_tokens(block, some, own, partial(_token_to_image, images=images, position=position))
            images = _update_images(block, images, position, some, own)
        states = _final(transformer, some, own, outputs, partial(_token_to_image, images=images, position=position))
        yield Decoded(chunk, states, images)


def _of_prompts(keys: Tensor, image: Tensor) -> Tensor:
    """(B, N, P) -> the image of each prompt (m, N, P), without a copy for one image or one prompt."""
    if len(keys) == 1:
        return keys.expand(len(image), -1, -1)
    return keys.narrow(0, int(image), 1) if len(image) == 1 else keys.index_select(0, image)


Attend = Callable[[Attention, Tensor], Tensor]
"""Cross attention of tokens (M, K, P) to their image -> (M, K, P)."""


def _update_tokens(block: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor, attend: Attend) -> Tensor:
    """The first three layers of a block: (M, K, P) -> (M, K, P)."""
    if block.skip_first_layer_pe:
        queries = block.norm1(block.self_attn(q=queries, k=queries, v=queries))
    else:
        with_position = queries + tokens
        queries = block.norm1(queries + block.self_attn(q=with_position, k=with_position, v=queries))
    queries = block.norm2(queries + attend(block.cross_attn_token_to_image, queries + tokens))
    return block.norm3(queries + block.mlp(queries))


def _update_images(
    block: TwoWayAttentionBlock, images: list[Tensor], position: Tensor, queries: Tensor, tokens: Tensor
) -> list[Tensor]:
    """The last layer of a block: images, (m, N, P) each, attend to the tokens (M, K, P) of their prompts."""
    attention = block.cross_attn_image_to_token
    heads = attention.num_heads
    k, v = attention.k_proj(queries + tokens), attention.v_proj(queries)
    k = _by_head(attention, k) / (k.shape[-1] // heads) ** 0.5
    k, bias = k @ attention.q_proj.weight, (k @ attention.q_proj.bias).unsqueeze(-1)
    weight = rearrange(attention.out_proj.weight, "p (heads d) -> heads d p", heads=heads)
    update = einsum(rearrange(v, "m k (heads d) -> m heads k d", heads=heads), weight, "m h k d, h d p -> m h k p")
    # Attention weights sum to 1 per head, so 1 / heads of the bias added to every token adds up to the bias.
    update = rearrange(update + attention.out_proj.bias / heads, "m heads k p -> m (heads k) p")
    updated = []
    for image, own_k, own_bias, own_update in _with_images(images, k, bias, update):
        scores = torch.baddbmm(own_bias, own_k, _placed(image, position).mT)
        attended = scores.unflatten(1, (heads, -1)).softmax(dim=2).flatten(1, 2)
        updated.append(block.norm4(torch.baddbmm(image, attended.mT, own_update)))
    return updated


def _final(
    transformer: TwoWayTransformer, queries: Tensor, tokens: Tensor, outputs: Sequence[int], attend: Attend
) -> Tensor:
    """Tokens (M, K, P) -> the selected output tokens (M, num_outputs, P)."""
    queries, tokens = (values[:, list(outputs)] for values in (queries, tokens))
    attended = attend(transformer.final_attn_token_to_image, queries + tokens)
    return transformer.norm_final_attn(queries + attended)


def _token_to_image(attention: Attention, queries: Tensor, *, images: list[Tensor], position: Tensor) -> Tensor:
    """Tokens (M, K, P) attend to the images of their prompts, (m, N, P) each -> (M, K, P)."""
    q = attention.q_proj(queries)
    q = _by_head(attention, q) / (q.shape[-1] // attention.num_heads) ** 0.5
    q, bias = q @ attention.k_proj.weight, (q @ attention.k_proj.bias).unsqueeze(-1)
    pooled = torch.cat(
        [
            torch.baddbmm(own_bias, own_q, _placed(image, position).mT).softmax(-1) @ image
            for image, own_q, own_bias in _with_images(images, q, bias)
        ]
    )
    pooled = rearrange(pooled, "m (heads k) p -> m heads k p", heads=attention.num_heads)
    weight = rearrange(attention.v_proj.weight, "(heads d) p -> heads d p", heads=attention.num_heads)
    mixed = rearrange(einsum(pooled, weight, "m heads k p, heads d p -> m k heads d"), "m k heads d -> m k (heads d)")
    return attention.out_proj(mixed + attention.v_proj.bias)


def _with_images(images: list[Tensor], *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each group of images (m, N, P) with the values of its prompts, of (M, ...)."""
    sizes = [len(image) for image in images]
    return zip(images, *(value.split(sizes) for value in values), strict=True)


def _placed(image: Tensor, position: Tensor) -> Tensor:
    """An image (m, N, P) with its positional encoding (1, N, P)."""
    return image + position.to(image.dtype)


def _token_to_shared_image(
    attention: Attention, queries: Tensor, *, keys: Tensor, position: Tensor, group: Grouping
) -> Tensor:
    """Tokens (M, K, P) attend to their image (B, N, P), all tokens of an image at once -> (M, K, P)."""
    q = group.by_image(attention.q_proj(queries))
    k, v = attention.k_proj(keys + position), attention.v_proj(keys)
    grouped = rearrange(q, "b e k d -> b (e k) d")
    grouped, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=attention.num_heads) for x in (grouped, k, v))
    mixed = rearrange(F.scaled_dot_product_attention(grouped, k, v), "b heads n d -> b n (heads d)")
    return group.by_prompt(rearrange(attention.out_proj(mixed), "b (e k) p -> b e k p", k=q.shape[2]))


def _by_head(attention: Attention, tokens: Tensor) -> Tensor:
    """(M, K, heads d) -> (M, heads K, heads d): each head's slice of a token, zero elsewhere."""
    own = torch.eye(attention.num_heads, dtype=tokens.dtype, device=tokens.device)
    own = repeat(own, "heads j -> heads 1 (j d)", d=tokens.shape[-1] // attention.num_heads)
    return rearrange(tokens.unsqueeze(1) * own, "m heads k d -> m (heads k) d")
