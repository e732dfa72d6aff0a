"""Packs several expressions of an image into one sequence: the visual tokens once, then all expressions.

Each expression attends to the image and itself only, and its position ids continue those of the image, so its hidden
states equal those of the expression alone.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from projectors import VisualTokens


@dataclass(frozen=True, slots=True)
class PackedSequence:
    """Input of the LLM; Q is T plus the largest number of text tokens of an image.

    Args:
        embeds: (B, Q, D).
        attention: (B, Q, Q) bool, True where the query (row) may attend to the key (column).
        positions: (B, Q) int64.
        first: (B, E) int64, index of each expression's first token in the sequence.
    """

    embeds: Tensor
    attention: Tensor
    positions: Tensor
    first: Tensor


def pack(visual: VisualTokens, text: Tensor, text_mask: Tensor, *, bidirectional: bool) -> PackedSequence:
    """Visual tokens followed by every expression of the image.

    Args:
        visual: T tokens per image, padded anywhere.
        text: (B, E, L, D) embedded prompts, padded on the right.
        text_mask: (B, E, L) bool; an expression without tokens is padding.
        bidirectional: visual tokens attend to all visual tokens instead of only earlier ones.
    """
    num_visual, length = visual.embeds.shape[1], text_mask.shape[-1]
    is_text, lengths = rearrange(text_mask, "b e l -> b (e l)"), text_mask.sum(-1)
    # A stable sort moves the padding of each image to its end, where the padding common to all images is dropped.
    kept = (~is_text).byte().argsort(dim=1, stable=True)[:, : int(lengths.sum(1).max())]
    image = torch.arange(len(kept), device=kept.device)[:, None]
    is_valid = torch.cat([visual.mask, is_text[image, kept]], dim=1)
    # Part 0 is the image, parts 1..E are the expressions. Each padding token is a part of its own, so that it
    # attends to itself: a softmax over no keys is NaN.
    part = torch.cat([torch.zeros_like(visual.mask, dtype=kept.dtype), kept // length + 1], dim=1)
    order = torch.arange(part.shape[1], device=kept.device)
    part = torch.where(is_valid, part, -1 - order)
    attention = (part[:, None, :] == part[:, :, None]).logical_and_(order[None, :] <= order[:, None])
    is_image, is_query = part == 0, is_valid if bidirectional else part > 0
    attention.logical_or_(is_image[:, None, :] & is_query[:, :, None])

    visual_positions = (visual.mask.cumsum(1) - 1).clamp(min=0)
    text_positions = visual.mask.sum(1, keepdim=True) + kept % length
    packed_text = rearrange(text, "b e l d -> b (e l) d")[image, kept]
    return PackedSequence(
        embeds=torch.cat([visual.embeds, packed_text.to(visual.embeds.dtype)], dim=1),
        attention=attention,
        positions=torch.cat([visual_positions, text_positions], dim=1),
        first=num_visual + lengths.cumsum(1) - lengths,
    )
