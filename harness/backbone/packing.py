"""Several expressions of an image in one sequence: the visual tokens once, then the expressions side by side.

Each expression sees the image and itself, never another expression, and its positions start after the image, so that
it scores as it would alone.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from projectors import VisualTokens


@dataclass(frozen=True, slots=True)
class PackedSequence:
    """What the LLM runs on; Q = T + E * L.

    Args:
        embeds: (B, Q, D).
        attention: (B, Q, Q) bool, True where the query (row) may look at the key (column).
        positions: (B, Q) int64.
        first: (E,) int64, where in the sequence the first token of each expression stands.
    """

    embeds: Tensor
    attention: Tensor
    positions: Tensor
    first: Tensor


def pack(visual: VisualTokens, words: Tensor, words_mask: Tensor, *, bidirectional: bool) -> PackedSequence:
    """Visual tokens followed by every expression of the image.

    Args:
        visual: T tokens an image, padded anywhere.
        words: (B, E, L, D) embedded prompts, padded on the right.
        words_mask: (B, E, L) bool; an expression of no words is padding and attends to nothing.
        bidirectional: whether visual tokens see one another whole, or only those before them.
    """
    num_visual, (_, num_expressions, length) = visual.embeds.shape[1], words_mask.shape
    device = words.device
    # 0 for the image, 1..E for the expressions; order inside a part is the order in the sequence.
    part = torch.cat(
        [
            torch.zeros(num_visual, dtype=torch.long, device=device),
            torch.arange(1, num_expressions + 1, device=device).repeat_interleave(length),
        ]
    )
    order = torch.arange(len(part), device=device)
    causal = order[None, :] <= order[:, None]
    same_part = part[None, :] == part[:, None]
    key_is_visual = (part == 0)[None, :]
    within_image = key_is_visual & (part == 0)[:, None]
    allowed = (same_part & causal) | (key_is_visual & ~within_image)
    if bidirectional:
        allowed = allowed | within_image
    real = torch.cat([visual.mask, rearrange(words_mask, "b e l -> b (e l)")], dim=1)
    # A padded query looks at itself alone, since a softmax over nothing is not a number.
    itself = torch.eye(len(part), dtype=torch.bool, device=device)
    attention = (allowed & real[:, None, :] & real[:, :, None]) | itself

    visual_positions = (visual.mask.cumsum(1) - 1).clamp(min=0)
    start = visual.mask.sum(1)
    word_positions = (start[:, None, None] + torch.arange(length, device=device)).expand(words_mask.shape)
    return PackedSequence(
        embeds=torch.cat([visual.embeds, rearrange(words, "b e l d -> b (e l) d").to(visual.embeds.dtype)], dim=1),
        attention=attention,
        positions=torch.cat([visual_positions, rearrange(word_positions, "b e l -> b (e l)")], dim=1),
        first=num_visual + torch.arange(num_expressions, device=device) * length,
    )
